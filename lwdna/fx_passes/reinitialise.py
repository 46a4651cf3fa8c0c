"""stub until merge"""


def reinitialise(gm, like, graph, *, seed):
    return gm
