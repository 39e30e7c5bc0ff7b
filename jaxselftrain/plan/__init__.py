"""What a run will need on devices that are not at hand: memory, work and time, before anything is paid for."""
