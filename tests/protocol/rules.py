"""The switches of the model: each rule of docs/protocol.md can be dropped, and the endpoint can lack abilities."""

from typing import NamedTuple


class Rules(NamedTuple):
    """All rules as they stand; change one to see what it is for."""

    history: str = "exact"  # or "latest"
    # Rule 1, and what the endpoint honours.
    conditional_put: bool = True
    conditional_delete: bool = True
    # Rules 2 and 3: "fresh", or "absent" (an empty ledger counts as knowledge), or "ledger" (what it wrote last is current).
    reads: str = "fresh"
    # Rule 2: whether a 404 tells a marker from nothing: it is "told" (AWS); or not, and then a 404 is believed for "one" write,
    # the first of a key, or for "any".
    not_found: str = "told"
    # Rule 3: the ledger answers a first delivery.
    ledger_answers: bool = True
    # Rule 4: the same content right above itself gets another ETag.
    distinct: bool = True
    # Rule 5: which writes wait: M marker over an object, E an ETag that stands there, R removal of what is current.
    fence: str = "MER"
    # Rule 5: how age is told: "landed" (the truth), "seen" (since this daemon saw it), "modified" (as Last-Modified says).
    fence_age: str = "landed"
    # Rule 5: where recurring content is looked up: "destination", "list" (the source's list and the ledger), or "both".
    fence_looks: str = "both"
    # Rule 6: a marker over a marker or over nothing is recorded only.
    collapse: bool = True
    # Rule 6: a marker on record as collapsed is written all the same once an object stands right below it.
    collapse_lapses: bool = True
    # Rule 6: a marker that the ledger lacks is taken for the first listed one that it can be.
    infer_marker: bool = True
    # Rule 6: a marker right above another is that one, written twice.
    marker_runs: bool = True
    # Rule 7: after a lost answer the lane waits until the write can no longer land.
    hold: bool = True
    # Rule 7: a redelivery is never answered from the ledger.
    redelivery_reads: bool = True
    # Rule 8: what was written is read again before the message goes.
    reread: bool = True
    # Rule 8, exact mode: but not where conditions and the fence kept everyone else out.
    guarded_rests: bool = True
    # Rule 8, exact mode: and everything is read again after a marker was only recorded, which no condition protects.
    collapse_rereads: bool = True
    # Rule 8, exact mode: and the source is listed again after a write over nothing or a marker, or of a marker.
    writer_looks: bool = True
    # Rule 8, latest mode: "nothing to do" is believed when it was read twice.
    confirm: bool = True
    # Rule 9: before Complete the destination must show the "entry" the upload was begun over; or its "etag"; or nobody looks ("no").
    complete_check: str = "entry"
    # Rule 9: after Complete the destination is read before anything is appended.
    complete_reread: bool = False
    # Which entry is current: the upload completed last, or (AWS) the one initiated last.
    order: str = "completion"
    # An abort also ends a Complete that is still on its way.
    abort_ends_late: bool = True
    # Rule 10.
    version_deletes: bool = False
    source_check: bool = True  # the source is asked right before the removal
    second_look: str = "WT"  # W: the writer looks again; T: a delete is settled when older than the longest life of a write
    remove_all: bool = True  # every replica that bears the stamp, not only the one in the ledger
    keep_run: bool = True  # a marker goes on standing for the others of its run
    # A marker nobody knows, over what the source shows, is taken for the gone version one hears of: if that is on "no record", or
    # also if it is on record as "collapsed"; or that is "never" done.
    explain_marker: str = "collapsed"
    bared_marker: bool = True  # who removes what is current looks whether it bares a marker whose version is gone, too
    write_source_check: bool = True  # what renews a plan asks the source for the version, too


class Faults(NamedTuple):
    """How often each thing may go wrong in one run."""

    crash: int = 0
    lost_ledger: int = 0
    expired: int = 0
    duplicate: int = 0
    late: int = 0
