"""stub until merge"""

from contextlib import nullcontext


class Ranks:
    size = 1
    rank = 0

    @classmethod
    def current(cls):
        return cls()

    def sum(self, t):
        return t

    def sum_(self, ts):
        pass

    def broadcast_(self, ts):
        pass

    def share(self, n):
        return 1.0

    def agree(self, what):
        pass

    def guard(self):
        return nullcontext()


def synchronised_batch_norm(ranks):
    return nullcontext()
