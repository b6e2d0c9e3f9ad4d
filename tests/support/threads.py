"""Several processes that write or read a folder together, as threads of this one."""

import threading

from rlhf_lightning.checkpoint.processes import attempt, results


class Rank:
    """One of ``size`` threads; talks like `rlhf_lightning.checkpoint.processes.Processes`."""

    def __init__(self, index, size, barrier, board):
        self.index, self.size = index, size
        self._barrier, self._board = barrier, board

    def gather(self, value):
        self._board[self.index] = value
        self._barrier.wait(20)
        values = list(self._board)
        self._barrier.wait(20)
        return values

    def first(self, value):
        return self.gather(value)[0]

    def agree(self, work):
        return results(self.gather(attempt(work)))


def together(size, work):
    """What ``work(rank)`` returns, or raises, in each of ``size`` threads."""
    barrier, board, found = threading.Barrier(size), [None] * size, [None] * size

    def run(index):
        try:
            found[index] = work(Rank(index, size, barrier, board))
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return found
