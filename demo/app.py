"""The demo on the nano model: `python demo/app.py`, as `vita-mctp demo`."""

import sys

from vita_mctp import SpeechLM
from vita_mctp.serving.demo import run_demo

if __name__ == "__main__":
    run_demo(SpeechLM.from_pretrained(), started=lambda address: sys.stdout.write(f"the page is at {address}\n"))
