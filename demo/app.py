"""The page on the nano model: `python demo/app.py`, or `gradio demo/app.py` to reload it on every change."""

import sys

from vita_mctp import SpeechLM
from vita_mctp.serving.page import build_page, launch_page

demo = build_page(SpeechLM.from_pretrained())

if __name__ == "__main__":
    sys.stdout.write(f"the page is at {launch_page(demo)}\n")
    demo.block_thread()
