"""The policy: its decoder, and the ways weights and tokenizers come in and go out."""
