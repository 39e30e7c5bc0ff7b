"""What a checkpoint holds, as NumPy arrays, whatever devices and processes it was saved on."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxselftrain.checkpoints import quiet


def saved_arrays(run: Path, step: int, item: str = "state") -> dict[str, np.ndarray]:
    """Path in the tree -> array, of one item of a run's checkpoint."""
    folder = (run / "checkpoints" / str(step) / item).absolute()
    with quiet(), ocp.PyTreeCheckpointer() as reader:
        like = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        got = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(got)}
