"""Hierarchical clustering of tasks by their cosines (needs scipy)."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from colora.errors import ConfigError
from colora.transfer.similarity import Similarity

try:
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform
except ImportError as error:
    raise ConfigError(f'clustering needs scipy, found: {error}. pip install "colora[similarity]"') from error

__all__ = ["Tree", "cluster_tree"]


@dataclass(frozen=True)
class Tree:
    """A dendrogram.

    Attributes:
        names: the tasks.
        linkage: as `scipy.cluster.hierarchy.linkage` gives it, (K − 1, 4); heights are 1 − cosine, averaged over pairs.
        leaves: the tasks in the order in which a drawing has them.
    """

    names: list[str]
    linkage: np.ndarray
    leaves: list[str]

    def groups(self, cosine: float | None = None, count: int | None = None) -> list[list[str]]:
        """The tasks in groups, those of a group in the order of `names`.

        Args:
            cosine: tasks are together while their mean cosine is at least this.
            count: so many groups, fewer only if merges are equally high. With neither, cut where the heights of two
                merges lie farthest apart, if that gap is more than a tenth; else all tasks are one group.
        """
        if count is not None:
            labels = fcluster(self.linkage, count, "maxclust")
        else:
            height = self._widest_gap() if cosine is None else 1.0 - cosine
            labels = fcluster(self.linkage, height, "distance")
        groups: dict[int, list[str]] = {}
        for name, label in zip(self.names, labels, strict=True):
            groups.setdefault(int(label), []).append(name)
        return list(groups.values())

    def _widest_gap(self) -> float:
        heights = self.linkage[:, 2].tolist()
        gaps = [(high - low, (high + low) / 2) for low, high in pairwise(heights)]
        widest, middle = max(gaps, default=(0.0, 0.0))
        return middle if widest > 0.1 else heights[-1]


def cluster_tree(similarity: Similarity) -> Tree:
    """The dendrogram of average linkage on 1 − cosine."""
    distance = 1.0 - similarity.overall().numpy()
    distance = np.clip((distance + distance.T) / 2, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance), "average", optimal_ordering=True)
    return Tree(similarity.names, tree, [similarity.names[leaf] for leaf in leaves_list(tree)])
