"""The switches of the model: each rule of docs/protocol.md can be dropped, and the endpoint can lack abilities."""

from typing import NamedTuple


class Rules(NamedTuple):
    """All rules as they stand; change one to see what it is for."""

    history: str = "exact"  # or "latest"
    # What keeps a key to one worker. "groups": a FIFO queue, which gives out no message of a group while another of it is in
    # work. "alone": one daemon, and its lane. "nothing": a standard queue and any number of daemons.
    exclusion: str = "groups"
    # Whoever takes over waits until its predecessor has stopped, and what that sent has landed or never will: with groups at a
    # redelivery, alone at a start that does not follow a clean stop.
    waits: bool = True
    # After a lost answer the lane waits until the write can no longer land.
    hold: bool = True
    # A task that is parked and tried again gets a message of its key's group first; else it acts on the key without one.
    retries_queue: bool = True
    # Such a message is, as a redelivery, never answered from the ledger: its task may have done a part.
    hints_read: bool = True
    # Hints of a backfill wait in a queue of their own and are "forwarded" to the work queue, into the group of their key; or they are
    # "worked on" where they are, which is another FIFO queue with groups of its own.
    backfill: str = "forwarded"
    # What was received too often is parked by its worker, which has waited; or the queue itself moves it to the dead-letter queue.
    worker_parks: bool = True
    # Whether the endpoint honours conditions, or is asked for none.
    conditions: bool = True
    # How "absent" is known. "read": the destination is read first. "condition": a first attempt of a key without a record writes
    # where the source shows one object of one request and nothing else, and the condition answers. "assumed": wherever there is
    # no record.
    absent: str = "read"
    # A redelivery is never answered from the ledger.
    redelivery_reads: bool = True
    # A marker on record as collapsed is written all the same once an object stands right below it.
    collapse_lapses: bool = True
    # A marker that the ledger lacks is taken for the first listed one that it can be.
    infer_marker: bool = True
    # What becomes of a version below what the destination shows: it is "recorded", and appended only where a message asks for it; or
    # it is "appended".
    late: str = "recorded"
    # Which entry is current: the upload completed last, or (AWS) the one initiated last.
    order: str = "completion"
    # Version deletes are replicated.
    version_deletes: bool = False
    source_check: bool = True  # the source is asked right before the removal
    keep_run: bool = True  # a marker goes on standing for the others of its run
    # A marker nobody knows, over what the source shows, is taken for the gone version one hears of: if that is on "no record", or
    # also if it is on record as "collapsed"; or that is "never" done.
    explain_marker: str = "collapsed"
    bared_marker: bool = True  # who removes what is current looks whether it bares a marker whose version is gone, too


class Faults(NamedTuple):
    """How often each thing may go wrong in one run."""

    crash: int = 0
    lost_ledger: int = 0
    expired: int = 0  # a message shows again too early
    duplicate: int = 0
    late: int = 0  # a request has no answer, or lands after it was given up
    parked: int = 0
