"""Run one command and print what it took: `python -I -S measure.py LOG FOLDER COMMAND [ARGUMENT ...]`.

Prints one line: exit status, wall seconds, user seconds, system seconds, peak resident KB (`ru_maxrss`: the largest
process of the command's tree, mapped files included), peak anonymous KB (of the command itself, sampled 20 times a
second). A process of its own, because Linux lets a child inherit the peak of the process that spawned it: this one
imports next to nothing, so the floor is about 10 MB.
"""

import os
import sys
import threading
import time

PERIOD = 0.05  # seconds between samples


def anonymous(pid: int) -> int:
    """Anonymous resident KB of a process, 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) for line in status if line.startswith("RssAnon:")), 0)
    except OSError:
        return 0


def main(log: str, folder: str, command: list[str]) -> None:
    os.chdir(folder)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    ended = threading.Event()
    peak = 0

    def sample() -> None:
        nonlocal peak
        while not ended.wait(PERIOD):
            peak = max(peak, anonymous(child))

    begin = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    sampler = threading.Thread(target=sample)
    sampler.start()
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - begin
    ended.set()
    sampler.join()
    print(os.waitstatus_to_exitcode(status), wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss, peak)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
