"""What ibpfs repair says to a person."""

from ibpfs_tools.repair import describe, progress_of, trouble

WELL = {"sound": 4, "bad": 0, "not_verified": 0, "repaired_bytes": 0, "under_replicated_bytes": 0, "at_risk_bytes": 0}


def test_all_is_well() -> None:
    assert describe(WELL) == "4 sound replicas, 0 bad"
    assert trouble(WELL) == ""


def test_what_was_mended_and_what_stays_wrong() -> None:
    assert describe({**WELL, "bad": 1, "repaired_bytes": 2048}) == (
        "4 sound replicas, 1 bad, 2.0 KiB have all copies again"
    )
    found = {**WELL, "not_verified": 3, "under_replicated_bytes": 1024, "at_risk_bytes": 1024}
    assert trouble(found) == "3 replicas could not be looked at, 1.0 KiB lack copies, 1.0 KiB at risk"


def test_how_far_the_background_is() -> None:
    state = {"period": 30 * 86400.0, "total_bytes": 200, "verified_bytes": 90, "unverified_since": 0.0}
    assert progress_of(state, 86400 * 12.3) == "every copy within 30 days; 45% verified, the longest wait is 12 days"
    assert progress_of({**state, "unverified_since": None}, 0) == "every copy within 30 days; nothing to verify yet"
    assert progress_of({**state, "period": None}, 0) == "copies are not verified in the background"
    assert progress_of({**state, "period": 90.0}, 30).startswith("every copy within 90 seconds")
    assert progress_of(state, 1.2).endswith("the longest wait is 1 second")
