"""The believed 404, rule 2: where a 404 does not tell a delete marker from nothing, it is believed for one write, the first
of a key. `Task.belief` says how far that is: it "may" be believed, it was believed ("yes"), and of what was then read the
original is "young", so that no fence let anyone hide a replica of it, or "old", so that someone may have."""


def believes(model, ledger, task):
    """Whether a 404 counts as nothing."""
    first = task.belief == "may" and not ledger.replicas
    return model.rules.not_found == "any" or first


def markers_matter(model, task):
    """Whether more than one write can come of what the source lists; then it matters what a 404 means. An upload compares
    entries, so it is none of those."""
    if task.belief != "yes" or model.rules.not_found == "any":
        return False
    only = task.listed[0] if len(task.listed) == 1 else None
    return only is None or model.history.kind[only] == "M" or model.history.in_parts(only)


def ages(model, world, task):
    """How old the original may be when its content is read, as far as that tells whether a replica of it may be hidden."""
    if task.belief != "yes":
        return [task]
    version = task.write.version
    stands = [at for at, entry in enumerate(world.destination) if entry.version == version]
    is_hidden = bool(stands) and any(entry.etag is None for entry in world.destination[stands[0] :])
    may_be_young = "M" in model.rules.fence and not is_hidden
    return [task._replace(belief=age) for age in (["young", "old"] if may_be_young else ["old"])]


def has_to_look(rules, task):
    """Whether the source has to be as it was. Whoever found everything under a marker had nothing to write."""
    return task.belief in ("yes", "old") and rules.belief_checked != "never"
