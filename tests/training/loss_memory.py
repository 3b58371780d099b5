"""Peak memory of the loss of all levels, in a process of its own: `python loss_memory.py chunked 8192 168072 10 64`.

Arguments: chunked or plain, positions, words, blocks, hidden size. Prints the megabytes by which making the loss and
its gradients raised the process's peak, beyond hidden states, weight and their gradients.
"""

import re
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from vita_mctp.models.losses import SharedHead


def peak() -> int:
    """Of this program alone: `getrusage` would begin with the peak of the process that started it."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) // 1024


def main(kind: str, positions: int, words: int, blocks: int, size: int) -> None:
    torch.manual_seed(0)
    head = SharedHead(size, words)
    states = [torch.randn(1, positions, size, requires_grad=True) for _ in range(blocks)]
    targets = [torch.randint(0, words, (1, positions)) for _ in range(blocks)]
    head.weight.grad = torch.ones_like(head.weight)
    for each in states:
        each.grad = torch.ones_like(each)
    small = (torch.randn(8, size) @ head.weight[:64].T).softmax(-1)  # threads and kernels exist before the first look
    before = peak()
    if kind == "chunked":
        head.losses(states, targets, torch.full((blocks,), 1 / positions)).loss.backward()
    else:
        losses = [F.cross_entropy(head(s)[0].float(), t[0]) for s, t in zip(states, targets, strict=True)]
        torch.stack(losses).sum().backward()
    print(peak() - before, float(small.sum() > 0))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
