"""Interleaving, id for id, against every recorded case of the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from speech_segments import deinterleave

from vita_mctp.errors import DataError
from vita_mctp.text.interleave import BOOST_RATIO, interleave


def test_every_recorded_case_is_reproduced(interleave_file: Path) -> None:
    golden = json.loads(interleave_file.read_text())
    begin, end = golden["aud_start_id"], golden["aud_end_id"]
    for case in golden["cases"]:
        ratio = BOOST_RATIO if case["ratio"] is None else case["ratio"]
        if "error" in case:
            with pytest.raises(DataError):
                interleave(case["input"], ratio, begin, end, reference=True)
        else:
            assert interleave(case["input"], ratio, begin, end, reference=True) == case["output"], case


def test_mended_form_differs_only_where_the_reference_loses_text(interleave_file: Path) -> None:
    golden = json.loads(interleave_file.read_text())
    begin, end = golden["aud_start_id"], golden["aud_end_id"]
    for case in golden["cases"]:
        if "error" in case:
            continue
        mended = interleave(case["input"], case["ratio"] or BOOST_RATIO, begin, end)
        spoken = deinterleave(case["input"], begin, end)
        reference_lost = deinterleave(case["output"], begin, end) != spoken
        assert deinterleave(mended, begin, end) == spoken
        assert (mended != case["output"]) == reference_lost
