"""Measures the daemon beside its peers on the same servers, in turn, and prints one table for each kind of server."""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

import contenders
import measure
import scale
import servers

KIB, MIB = 1 << 10, 1 << 20


def main():
    options = arguments()
    if options.pace:
        print(latencies(options), flush=True)
        return
    if options.scale:
        for line in scale.RUNS[options.scale](options):
            print(line, flush=True)
        return
    for world in options.worlds:
        rows = {}
        for _ in range(options.runs):
            for name in options.contenders:
                used = once(options, world, name)
                if used is not None:
                    rows.setdefault(name, []).append(used)
        print(table(options, world, rows), flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, type=pathlib.Path, help="the folder of the built programs")
    parser.add_argument("--weed", help="the program of SeaweedFS")
    parser.add_argument("--rclone", help="the program of rclone")
    parser.add_argument("--s3sync", help="the program of s3sync")
    parser.add_argument("--worlds", nargs="+", default=["fakes", "seaweedfs"])
    parser.add_argument("--contenders", nargs="+", default=["daemon", "exclusive", "bare", "rclone", "s3sync"])
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=16 * KIB)
    parser.add_argument("--memory", default="64MiB")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument(
        "--pace", type=float, help="puts so many objects a second on the fakes and tells how long their replicas took"
    )
    parser.add_argument("--scale", choices=scale.RUNS, help="how cost goes with what there is to do, on the fakes")
    return parser.parse_args()


def once(options, world, name):
    """Lets one contender do the work on new servers."""
    serve = str(options.bin / "serve")
    place = servers.Fakes(serve) if world == "fakes" else servers.Weeds(options.weed, serve)
    try:
        with tempfile.TemporaryDirectory() as folder:
            place.seed(options.objects, options.bytes)
            place.post()
            contender = build(options, name, place.servers, folder)
            if contender is None:
                return None
            before = sum(map(measure.cpu_of, place.pids()))
            used = measure.run([contender], lambda _: place.waiting() == 0)
            used.cpu_of_servers = sum(map(measure.cpu_of, place.pids())) - before
            used.stats = place.stats()
            check(options, used, name)
            print(json.dumps({"world": world, "contender": name} | vars(used)), file=sys.stderr, flush=True)
            return used
    except measure.Failed as failed:
        print(f"{world}: {failed}", file=sys.stderr, flush=True)
        return None
    finally:
        place.close()


def latencies(options):
    """Lets the daemon keep up with objects as they come, on the fakes."""
    lines = [f"\nfakes: {options.objects} objects of {options.bytes} bytes, {options.pace:.0f} a second",
             f"{'':<12}{'p50 ms':>8}{'p99 ms':>8}{'max ms':>8}{'CPU ms/object':>15}{'RSS MiB':>9}"]
    for _ in range(options.runs):
        place = servers.Fakes(str(options.bin / "serve"))
        try:
            with tempfile.TemporaryDirectory() as folder:
                used = measure.run([build(options, "daemon", place.servers, folder)], keeping_up(options, place))
                took = place.stats()["latency_seconds"]
        finally:
            place.close()
        shares = "".join(f"{took[share] * 1000:>8.0f}" for share in ("p50", "p99", "max"))
        lines.append(f"{'daemon':<12}{shares}{used.cpu_seconds / options.objects * 1000:>15.3f}{used.peak_rss_mib:>9.0f}")
    return "\n".join(lines)


def keeping_up(options, place):
    """Begins once the first object shows that the daemon is there, and ends with the last one's replica."""
    place.seed(1, options.bytes)
    place.post()
    begun = False

    def is_done(_):
        nonlocal begun
        replicas = place.replicas()
        if not begun and replicas == 1:
            place.pace(options.objects, options.pace, options.bytes)
            begun = True
        return replicas > options.objects

    return is_done


def build(options, name, where, folder):
    binary = str(options.bin / "s3-replicator")
    match name:
        case "daemon":
            return contenders.daemon(binary, where, folder, servers.free_port(), options.memory)
        case "exclusive":
            rule = contenders.rule(rest="exclusive = true")
            return contenders.daemon(binary, where, folder, servers.free_port(), options.memory, rule)
        case "bare":
            return contenders.bare(str(options.bin / "bare"), where, options.objects)
        case "curl":
            return contenders.curl(where, options.objects, options.bytes)
        case "rclone" if options.rclone:
            return contenders.rclone(options.rclone, where, folder)
        case "s3sync" if options.s3sync:
            return contenders.s3sync(options.s3sync, where, folder)
    return None


def check(options, used, name):
    replicas = used.stats["replicas"]
    if replicas is not None and replicas < options.objects:
        raise measure.Failed(f"{name} wrote {replicas} of {options.objects} objects: {used.stats}")


def table(options, world, rows):
    total = options.objects * options.bytes
    lines = [
        f"\n{world}: {options.objects} objects of {options.bytes} bytes, median of {options.runs} runs",
        f"{'':<12}{'objects/s':>10}{'MiB/s':>8}{'CPU ms/object':>15}{'CPU s/GiB':>11}{'RSS MiB':>9}"
        f"{'requests/object':>17}{'servers CPU ms/object':>23}",
    ]
    for name, runs in rows.items():
        wall, cpu, rss, others = (
            statistics.median(getattr(used, field) for used in runs)
            for field in ("wall_seconds", "cpu_seconds", "peak_rss_mib", "cpu_of_servers")
        )
        asked = runs[0].stats["requests"]
        s3 = sum(count for operation, count in asked.items())
        lines.append(
            f"{name:<12}{options.objects / wall:>10.0f}{total / wall / MIB:>8.1f}{cpu / options.objects * 1000:>15.3f}"
            f"{cpu / total * (1 << 30):>11.2f}{rss:>9.0f}{s3 / options.objects:>17.2f}{others / options.objects * 1000:>23.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
