"""What the kernel says of processes and cores is read right."""

import os
import subprocess
import sys
import time

import pytest

from bench.measure import Stat, cpu, parse_core_idle, parse_pss, parse_stat, process_tree, pss

PROC_STAT = """\
cpu  300 0 200 9000 500 0 0 0 0 0
cpu0 100 0 100 4000 300 0 0 0 0 0
cpu1 200 0 100 5000 200 0 0 0 0 0
intr 12345
"""


def test_a_command_with_brackets_and_spaces_does_not_shift_the_fields() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fields = f"S 7 1 1 0 -1 0 0 0 0 0 {2 * ticks} {3 * ticks} {4 * ticks} {5 * ticks} 20 0 1 0"
    assert parse_stat(f"42 (a ) (b) {fields}") == Stat(parent=7, user=2, system=3, ended_children=9)


def test_a_core_is_idle_while_it_waits_for_a_disk() -> None:
    assert parse_core_idle(PROC_STAT, 1) == 5200 / os.sysconf("SC_CLK_TCK")


def test_a_core_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no core 2"):
        parse_core_idle(PROC_STAT, 2)


def test_pss_is_the_line_of_that_name_alone() -> None:
    assert parse_pss("Rss: 9 kB\nPss_Anon: 7 kB\nPss:   5 kB\nSwapPss: 1 kB\n") == 5 * 1024


def test_the_tree_counts_children_and_what_they_used() -> None:
    """A child that has burnt 50 ms counts while it lives and after it was waited for; its memory counts too."""
    burn = "import time\nwhile time.process_time() < 0.05: pass\nprint(flush=True)\ninput()"
    me, before = os.getpid(), cpu(os.getpid()).total
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in process_tree(me)
        assert cpu(me).total - before >= 0.05
        assert pss(me) > pss(child.pid) > 0
    own = time.process_time()
    assert cpu(me).total - before >= 0.04  # an ended child is counted in hundredths, rounded down
    assert cpu(me).total >= own
