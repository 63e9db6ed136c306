"""The copy bound: read every input byte, write every output byte, compute nothing.

    python -I -S copy_bound.py OUT INPUT_FOLDER [INPUT_FOLDER ...]

Two threads take 512 KB ranges in turn: each range is read from every input into one reused buffer and written
once to a file of the same size in OUT. Positioned reads and writes, no fsync. No merge of these inputs that reads
and writes through the page cache can be faster than this by more than noise; the whole process is what is timed.
"""

# ruff: noqa: PTH102, PTH118, PTH208
# (pathlib stays out: nothing but these imports is in the measured process)
import itertools
import os
import sys
import threading

BLOCK = 1 << 19
THREADS = 2


def main(out: str, inputs: list[str]) -> None:
    os.mkdir(out)
    work = []  # (input descriptors, output descriptor, offset, size)
    for name in sorted(entry for entry in os.listdir(inputs[0]) if entry.endswith(".safetensors")):
        sources = [os.open(os.path.join(folder, name), os.O_RDONLY) for folder in inputs]
        target = os.open(os.path.join(out, name), os.O_WRONLY | os.O_CREAT, 0o644)
        size = os.fstat(sources[0]).st_size
        os.ftruncate(target, size)
        work += [(sources, target, at, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]
    turn = itertools.count()
    failures = []

    def run() -> None:
        view = memoryview(bytearray(BLOCK))
        try:
            while (index := next(turn)) < len(work):
                sources, target, at, size = work[index]
                for source in sources:
                    assert os.preadv(source, [view[:size]], at) == size
                assert os.pwrite(target, view[:size], at) == size
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
