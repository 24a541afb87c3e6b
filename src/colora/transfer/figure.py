"""A figure of the similarity of tasks: the dendrogram, and a heat map of the cosines in its order."""

from io import BytesIO
from pathlib import Path

from colora.common.files import write_bytes
from colora.errors import ColoraError
from colora.transfer.clusters import Tree
from colora.transfer.similarity import Similarity

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError as error:
    raise ColoraError(
        f'expected matplotlib for the figure, found: {error}. Install it with: pip install "colora[similarity]"'
    ) from error

__all__ = ["check_figure", "draw_similarity"]

# The same file from the same numbers: without the date, where the kind has one.
KINDS: dict[str, dict[str, None]] = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}
INK = "#333333"


def check_figure(path: Path) -> str:
    """The kind of image by a file's ending.

    Raises:
        ColoraError: an ending other than those of `KINDS`.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in KINDS:
        raise ColoraError(f"{path}: expected a name that ends in .{', .'.join(KINDS)}")
    return kind


def draw_similarity(similarity: Similarity, tree: Tree, path: Path) -> None:
    """Write the figure, atomically.

    Raises:
        ColoraError: the file's ending is none of `KINDS`.
        CheckpointError: it cannot be written.
    """
    from scipy.cluster.hierarchy import dendrogram

    kind = check_figure(path)
    count = len(tree.leaves)
    side = max(3.0, 0.34 * count)
    figure = Figure(figsize=(side + 4.2, side + 0.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.2, side])
    dendrogram(tree.linkage, ax=left, orientation="left", no_labels=True, link_color_func=lambda _: INK)
    left.set_xlabel("1 − cosine")
    left.spines[["top", "left", "right"]].set_visible(False)
    order = [similarity.names.index(name) for name in tree.leaves]
    cosines = similarity.overall()[order][:, order].numpy()
    image = right.imshow(cosines, cmap="cividis", vmin=min(0.0, float(cosines.min())), vmax=1.0, origin="lower")
    right.set_xticks(range(count), tree.leaves, rotation=90)
    right.set_yticks(range(count), tree.leaves)
    right.tick_params(length=0)
    if count <= 16:
        for row in range(count):
            for column in range(count):
                ink = "black" if cosines[row, column] > 0.55 else "white"
                right.text(column, row, f"{cosines[row, column]:.2f}", ha="center", va="center", color=ink, size=6)
    what = "updates after training" if similarity.kind == "cores" else "gradients before training"
    figure.colorbar(image, ax=right, label=f"cosine of {what}", shrink=0.8)
    drawn = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "colora"}):  # the same file from the same numbers
        figure.savefig(drawn, format=kind, metadata=KINDS[kind])
    write_bytes(path, drawn.getvalue())
