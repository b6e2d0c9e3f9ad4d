"""A child process that ends with no error message before the n-th event of some kind."""

import os
from collections.abc import Callable

KILLED = 137


def dies_before(number: int, work: Callable[[], object], listen: Callable[[Callable[[str], None]], object]):
    """Do the work in a child; the name of the event it died before, None if it came to its end.

    Args:
        number: of the event, from 0.
        work: what the child does.
        listen: called in the child with a function that is to be told the name of every event before it happens.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        left = number

        def before(name: str) -> None:
            nonlocal left
            if left == 0:
                os.write(tell, name.encode())
                os._exit(KILLED)
            left -= 1

        listen(before)
        work()
        os._exit(0)
    os.close(tell)
    _, status = os.waitpid(child, 0)
    with os.fdopen(told) as stream:
        name = stream.read()
    assert os.waitstatus_to_exitcode(status) in (0, KILLED)
    return name or None
