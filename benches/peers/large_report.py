"""What `large.py` measured, as a page: goals first, misses named, then the tables."""

MIB = 1 << 20

REDIS = "Redis, `maxmemory` of as much, `noeviction`"


def report(found, about, when, arguments):
    """The whole page."""
    lines = ["# Large states", "",
             f"`benches/peers/large.sh --gib {arguments.gib} --seconds {arguments.seconds}` on {when}: "
             f"{about['cores']} cores of {about['processor']}, {about['memory']}, Linux "
             f"{about['kernel']}; loaders, nodes and peers share the machine.", ""]
    lines += goals(found)
    tables = {"mixed": mixed, "ranges": ranges, "streams": streams, "replicated": replicated,
              "beside": beside, "patches": patches}
    for name, part in found.items():
        lines += tables[name](part)
    return "\n".join(lines)


def goals(found):
    lines = ["| | measured | goal | |", "|---|---|---|---|"]
    for part in found.values():
        for what, value, sense, goal, unit in part["goals"]:
            met = value <= goal if sense == "<=" else value >= goal
            sign = "at most" if sense == "<=" else "at least"
            lines.append(f"| {what} | {number(value)} {unit} | {sign} {number(goal)} {unit} "
                         f"| {'' if met else '**missed**'} |")
    return lines + [""]


def number(value):
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def call_table(figures, names=None):
    lines = ["| | calls | per second | MB/s | p50 ms | p99 ms | max ms |", "|---|---|---|---|---|---|---|"]
    for row in figures["calls"]:
        name = (names or {}).get(row["name"], row["name"])
        lines.append(f"| {name} | {row['answers']:,} | {row['per_second']:,.1f} "
                     f"| {row['mb_per_second']:,.1f} | {row['p50_ms']:,.2f} | {row['p99_ms']:,.2f} "
                     f"| {row['max_ms']:,.1f} |")
    lines.append("")
    for row in figures["pressure"]:
        lines.append(f"- `{row['name']}` was told to come back later ({row['reason']}): {row['count']:,}")
    for row in figures["failures"]:
        lines.append(f"- **`{row['name']}` failed** ({row['reason']}): {row['count']:,}; the first: "
                     f"{row['first']}")
    if figures["pressure"] or figures["failures"]:
        lines.append("")
    return lines


def mixed(part):
    memory, load, peer = part["memory"], part["load"], part["peer"]
    first = peer["first_refusal"]
    lines = ["## Mixed work in fixed memory", "",
             f"{load['states']:,} states of 1 KiB to 256 MiB, {load['bytes'] / (1 << 30):.1f} GiB, as many "
             f"bytes in each class of sizes; written at {load['mb_per_second']:,.0f} MB/s by eight "
             f"clients ({load['pressure']:,} times told to come back later). Then all kinds of calls by "
             f"eight clients for {part['work']['seconds']:,.0f} s, on Zipf keys.", "",
             "| | MiB |", "|---|---|",
             f"| the node may take | {memory['max'] / MIB:,.0f} |",
             f"| most resident while loading | {memory['resident_max_while_loading'] / MIB:,.0f} |",
             f"| most resident, of {memory['samples']:,} looks | {memory['resident_max'] / MIB:,.0f} |",
             f"| high-water mark, as Linux says | {memory['high_water'] / MIB:,.0f} |", ""]
    lines += call_table(part["work"])
    lines += [f"{REDIS}, the same states in the same order: "]
    if first:
        lines += [f"after {first['after_bytes'] / MIB:,.0f} MiB, {first['after_seconds']:.1f} s, a SET of "
                  f"{first['state_bytes']:,} bytes got `{first['message']}`. In all it kept "
                  f"{peer['set']:,} states, {peer['set_bytes'] / MIB:,.0f} MiB, and refused "
                  f"{peer['refused']:,}."]
    else:
        lines += [f"it kept all {peer['set']:,}."]
    return lines + [""]


def ranges(part):
    names = {"large_cold": "64 MiB, a place never read before", "large_hot": "64 MiB, again",
             "beside_cold": "1 MiB, a place never read before", "beside_hot": "1 MiB, again"}
    lines = ["## 4 KiB out of a state", "",
             f"Random places, one in each chunk of 256 KiB, of {part['data_bytes'] / (1 << 30):.1f} GiB at a "
             f"node of {part['memory_max'] / MIB:,.0f} MiB that was started anew, one call at a time. "
             "It reads past the page cache.", ""]
    lines += call_table(part["ranges"], names)
    lines += ["A state of 16 MiB, one call at a time:", "",
              "| | p50 ms | p99 ms |", "|---|---|---|"]
    for peer, figures in (("node", part["whole"]), ("Redis", part["redis"])):
        verbs = {"node": ("Read", "Get of 4 KiB"), "Redis": ("GET", "GETRANGE of 4 KiB")}[peer]
        rows = {row["name"]: row for row in figures["calls"]}
        for verb, name in zip(verbs, ("whole", "range")):
            what = f"{verb}, to its last byte" if name == "whole" else verb
            lines.append(f"| {peer}: {what} | {rows[name]['p50_ms']:.2f} | {rows[name]['p99_ms']:.2f} |")
    return lines + [""]


def streams(part):
    lines = ["## Streams of 64 MiB on one node", "",
             "| | states | MB/s | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for name, figures in part["rows"].items():
        for row in figures["calls"]:
            lines.append(f"| {name} | {row['answers']:,} | {row['mb_per_second']:,.0f} "
                         f"| {row['p50_ms']:,.0f} | {row['p99_ms']:,.0f} |")
    for figures in part["rows"].values():
        for row in figures["failures"]:
            lines.append(f"| **{row['name']} failed** ({row['reason']}: {row['first']}) | {row['count']} | | | |")
    lines += ["", "| written for each byte of a state | bytes |", "|---|---|"]
    names = {"wal": "the write-ahead log", "flush": "flushes", "compaction": "compactions",
             "garbage_collection": "live chunks moved out of blob files"}
    for kind, factor in part["written"].items():
        lines.append(f"| {names[kind]} | {factor:.2f} |")
    return lines + [""]


def replicated(part):
    return ["## States of 16 MiB on three nodes", "", *call_table(part["write"])]


def beside(part):
    lines = ["## Small reads beside streams", "",
             f"Gets of 1 KiB, {part['rate']} a second, by one client; then the same while eight write and read "
             f"states of 64 MiB; then while {part['loops']} loops take processor time and leave the node alone.",
             "",
             "| | p50 ms | p99 ms | max ms | failed |", "|---|---|---|---|---|"]
    rows = (("alone", part["alone"]), ("beside streams", part["busy"]),
            ("beside loops", part["contended"]))
    for name, figures in rows:
        at = figures["latency_us"]
        lines.append(f"| {name} | {at['p50'] / 1e3:.2f} | {at['p99'] / 1e3:.2f} | {at['max'] / 1e3:.1f} "
                     f"| {figures['errors']} |")
    return lines + ["", *call_table(part["churn"])]


def patches(part):
    names = {"patch": "patch of 4 KiB in 64 MiB", "put": "put of 4 KiB"}
    return ["## Patches of large states", "", *call_table(part["patches"], names)]
