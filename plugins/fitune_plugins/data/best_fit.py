"""Best-fit-decreasing bin packing of whole numbers, in linear time.

Documents go from the longest to the shortest, each into the row in which it leaves the least space, or into a new one
where none has space. It needs at most 11/9 of the rows of the best packing, and 4 (D. S. Johnson et al., Worst-case
performance bounds for simple one-dimensional packing algorithms, SIAM J. Comput. 3, 1974).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def best_fit(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Give the documents of each row, by index, the longest first; `lengths` has shape `[documents]`.

    Of documents of one length the first goes first; of rows with the same space left, the one that has had it longest
    is taken. Raises `ValueError` for a length under 1 or over `capacity`.
    """
    import numpy as np

    if len(lengths) and not (int(lengths.min()) >= 1 and int(lengths.max()) <= capacity):
        raise ValueError(f"lengths must be from 1 to {capacity}")
    descending = np.argsort(-lengths, kind="stable")
    rows: list[list[int]] = []
    spaces: list[int] = []
    # No search is needed, since lengths only fall. `usable` are the rows that have space for the document at hand, the
    # fullest last. A row that is filled stays the fullest of them, or has too little space, and then waits in the
    # list of that space until documents are so short: it is the fullest of all when it comes back.
    usable: list[int] = []
    waiting: list[list[int]] = [[] for _ in range(capacity)]
    reached = capacity
    for document, length in zip(descending.tolist(), lengths[descending].tolist(), strict=True):
        while reached > length:
            reached -= 1
            usable.extend(reversed(waiting[reached]))
        if usable:
            row = usable.pop()
        else:
            row = len(rows)
            rows.append([])
            spaces.append(capacity)
        rows[row].append(document)
        spaces[row] -= length
        (usable if spaces[row] >= length else waiting[spaces[row]]).append(row)
    return rows
