"""Access log lines as text: nginx's and Envoy's, to the letter, and that nothing breaks one."""

import json
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.log_template import DEFAULT_TEMPLATE, VARIABLES
from sniproxy.identity.spiffe import MAX_LENGTH, SCHEME, parse_principal
from sniproxy.observe import lines
from sniproxy.observe.lines import JsonLines, LineFormat
from sniproxy.observe.text_lines import FLAGS, STATUS, EnvoyLines, NginxLines
from sniproxy.outcome import Event, Reason
from sniproxy.policy.model import DryRun, Ground
from sniproxy.record import Record
from tests.observe.records import HOSTILE, IDENTITY, as_recorded, refused, relayed
from tests.support.configs import config_of

# 2018-08-01 15:32:02 UTC, when the first line of the seed was written.
THEN = 1533137522.75

# Every variable, each between bars.
EVERY = "|".join(f"${name}" for name in VARIABLES)


@pytest.fixture(autouse=True)
def then(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It is that time, in a place whose time is UTC; by the clock of records, 100.75 s."""
    with monkeypatch.context() as context:
        context.setenv("TZ", "UTC")
        time.tzset()
        context.setattr(time, "time", lambda: THEN)
        context.setattr(lines, "_time", lambda: THEN)
        context.setattr(lines, "_monotonic", lambda: 100.75)
        yield
    time.tzset()


def nginx(record: Record, event: Event = Event.CLOSE, template: str = DEFAULT_TEMPLATE, now: float = 100.6) -> str:
    return NginxLines(template, "1f-abc123").line(record, event, now).decode()


def envoy(record: Record, event: Event = Event.CLOSE, now: float = 100.75) -> str:
    return EnvoyLines().line(record, event, now).decode()


def of_seed(name: str, received: int, sent: int) -> Record:
    record = relayed()
    record.source_ip, record.server_name, record.received, record.sent = "127.0.0.1", name, received, sent
    return record


class TestNginx:
    def test_the_default_line_is_the_one_that_nginx_wrote(self) -> None:
        expected = "127.0.0.1 [01/Aug/2018:15:32:02 +0000] TCP [en.wikipedia.org]200 81513 280 0.600\n"
        assert nginx(of_seed("en.wikipedia.org", 280, 81513)) == expected

    def test_the_time_is_that_of_the_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TZ", "NPT-5:45")
        time.tzset()
        assert nginx(relayed(), template="$time_local") == "01/Aug/2018:21:17:02 +0545\n"
        assert nginx(relayed(), template="$time_iso8601") == "2018-08-01T21:17:02+05:45\n"

    def test_what_each_variable_says(self) -> None:
        said = dict(zip(VARIABLES, nginx(relayed(), template=EVERY).rstrip("\n").split("|"), strict=True))
        assert said == {
            "remote_addr": "10.1.2.3",
            "time_local": "01/Aug/2018:15:32:02 +0000",
            "protocol": "TCP",
            "ssl_preread_server_name": "en.wikipedia.org",
            "status": "200",
            "bytes_sent": "4711",
            "bytes_received": "298",
            "session_time": "0.600",
            "time_iso8601": "2018-08-01T15:32:02+00:00",
            "msec": "1533137522.600",
            "connection": "1f-abc123-7",
            "upstream_addr": "208.80.154.224:443",
            "ssl_preread_protocol": "TLSv1.3",
            "ssl_preread_alpn_protocols": "h2,http/1.1",
            "event": "close",
            "level": "info",
            "principal": "cluster.local/ns/default/sa/sleep-us",
            "decision": "allow",
            "policy": "policy.yaml",
            "rule": "us-wikipedia",
            "reason": "done",
            "detail": "-",
        }

    def test_what_is_not_known_is_a_dash(self) -> None:
        record = Record(1, "", 100.0)
        record.end(Reason.HELLO_TIMEOUT)
        template = "$remote_addr [$ssl_preread_server_name] $upstream_addr $ssl_preread_protocol $principal $detail"
        assert nginx(record, Event.FAIL, template) == "- [-] - - - -\n"

    def test_an_opening_has_no_status_yet(self) -> None:
        """nginx's own word for that is 000."""
        assert nginx(relayed(), Event.OPEN, "$event $status $reason") == "open 000 -\n"

    def test_a_refusal_says_by_which_rule(self) -> None:
        said = nginx(refused(), Event.DENY, '$level $status $decision "$detail"')
        assert said == 'error 403 deny "rbac_access_denied_matched_policy[policy.yaml-rule[no-english]]"\n'

    @pytest.mark.parametrize("reason", Reason)
    def test_every_end_has_a_status(self, reason: Reason) -> None:
        assert nginx(refused(reason), reason.event, "$status") == f"{STATUS[reason]}\n"

    def test_a_lost_worker_has_a_line_of_its_own(self) -> None:
        expected = b"[01/Aug/2018:15:32:02 +0000] worker_lost: worker 2, 17 connections\n"
        assert NginxLines(DEFAULT_TEMPLATE, "p").worker_lost(2, 17) == expected


class TestEnvoy:
    def test_the_line_of_a_connection_that_was_served(self) -> None:
        """It begins with the time of its beginning, as Envoy's does; here 0.75 s before its end."""
        assert envoy(relayed()) == (
            '[2018-08-01T15:32:02.000Z] "- - -" 0 - - - "-" 298 4711 750 - "-" "-" "-" "-" "208.80.154.224:443" '
            "outbound|443||en.wikipedia.org - - 10.1.2.3 en.wikipedia.org -\n"
        )

    def test_the_line_of_a_refusal_has_istios_phrase(self) -> None:
        record = refused()
        record.end(
            Reason.RULE,
            "rbac_access_denied_matched_policy[ns[istio-system]-policy[external-deny-developer-yahoo-com]-rule[0]]",
        )
        assert envoy(record, Event.DENY) == (
            '[2018-08-01T15:32:02.000Z] "- - -" 0 - - rbac_access_denied_matched_policy'
            "[ns[istio-system]-policy[external-deny-developer-yahoo-com]-rule[0]] "
            '"-" 298 4711 750 - "-" "-" "-" "-" "-" - - - 10.1.2.3 en.wikipedia.org -\n'
        )

    def test_an_opening_has_no_duration_and_no_flags_yet(self) -> None:
        assert envoy(relayed(), Event.OPEN).split('"')[2:5] == [" 0 - - - ", "-", " 280 0 - - "]

    def test_an_ipv6_upstream_stands_in_brackets(self) -> None:
        record = relayed()
        record.destination_ip = "2001:db8::1"
        assert '"[2001:db8::1]:443"' in envoy(record)

    def test_details_have_no_space(self) -> None:
        """As Envoy writes them, so that what follows keeps its place."""
        record = refused(Reason.NO_SNI)
        record.end(Reason.NO_SNI, "the ClientHello has no server_name extension")
        assert " 0 NR - the_ClientHello_has_no_server_name_extension " in envoy(record, Event.DENY)

    def test_without_details_the_reason_is_one(self) -> None:
        record = relayed()
        record.end(Reason.IDLE_TIMEOUT)
        assert " 0 SI - idle_timeout " in envoy(record)

    @pytest.mark.parametrize("reason", Reason)
    def test_every_end_has_its_flags(self, reason: Reason) -> None:
        assert envoy(refused(reason), reason.event).split()[5] == FLAGS[reason]

    def test_a_lost_worker_has_a_line_of_its_own(self) -> None:
        assert EnvoyLines().worker_lost(2, 17) == b"[2018-08-01T15:32:02.750Z] worker_lost: worker 2, 17 connections\n"


FORMS: dict[str, LineFormat] = {
    "nginx": NginxLines(DEFAULT_TEMPLATE, "p"),
    "nginx, with every variable": NginxLines(EVERY, "p"),
    "envoy": EnvoyLines(),
}

# The shape of each line, whatever stands in it: a field is a word without what separates fields.
WORD = r"[!#-Z^-~\\]+"
PHRASE = r"[ -!#-~]*"
SHAPES = {
    "nginx": rf"{WORD} \[[^]]+\] TCP \[{WORD}\]\d{{3}} \d+ \d+ \d+\.\d{{3}}\n",
    "nginx, with every variable": r"([^|]*\|){21}[^|]*\n",
    "envoy": (rf'\[[^]]+\] "- - -" 0 \S+ - \S+ "-" \d+ \d+ \S+ - "-" "-" "-" "-" "[^"]+" \S+ - - \S+ {WORD} -\n'),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sni", HOSTILE.values(), ids=HOSTILE)
def test_no_name_breaks_its_line(sni: bytes, form: str) -> None:
    record = refused(Reason.INVALID_SNI)
    record.server_name = as_recorded(sni)
    text = FORMS[form].line(record, Event.DENY, 101.0).decode("ascii")
    assert [char for char in text if not char.isprintable()] == ["\n"]
    assert re.fullmatch(SHAPES[form], text)


BYTES_AND_TEXT = st.one_of(st.binary(max_size=255).map(as_recorded), st.text(max_size=300))


@given(name=BYTES_AND_TEXT, detail=st.text(max_size=600), rule=st.text(max_size=128), policy=st.text(max_size=255))
@pytest.mark.parametrize("form", ["nginx", "envoy"])
def test_nothing_breaks_a_line_or_moves_a_field(name: str, detail: str, rule: str, policy: str, form: str) -> None:
    """Printable ASCII, one line, within PIPE_BUF, and every field in its place."""
    record = refused()
    record.server_name = name
    record.ground = Ground(policy, rule, "p.yaml", 1)
    record.end(Reason.RULE, detail)
    written = FORMS[form].line(record, Event.DENY, 101.0)
    assert len(written) <= select.PIPE_BUF
    assert re.fullmatch(SHAPES[form], written.decode("ascii"))


@given(text=st.text(max_size=400))
def test_a_template_of_every_variable_stays_one_line_within_pipe_buf(text: str) -> None:
    """A longer line loses its end."""
    record = refused()
    record.identity = parse_principal("td/ns/" + "n" * (MAX_LENGTH - len(f"{SCHEME}td/ns//sa/a")) + "/sa/a")
    record.server_name = text
    record.alpn = (text,)
    record.ground = Ground(text, text, "p.yaml", 1)
    record.end(Reason.RULE, text)
    written = FORMS["nginx, with every variable"].line(record, Event.DENY, 101.0)
    assert len(written) <= select.PIPE_BUF
    assert (written.count(b"\n"), written[-1:], written.isascii()) == (1, b"\n", True)


@given(name=st.binary(min_size=1, max_size=255).map(as_recorded))
def test_a_name_can_be_read_back(name: str) -> None:
    """What is escaped is escaped without doubt."""
    record = refused()
    record.server_name = name
    (said,) = re.findall(r"^\[(.*)\]$", nginx(record, Event.DENY, "[$ssl_preread_server_name]"))
    read = re.sub(r"\\x([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), said)
    assert name.startswith(read.rstrip("\\x0123456789ABCDEF")) if len(said) == 1024 else name == read


class TestTheDocument:
    """docs/access-log.md says what the code does."""

    text = (Path(__file__).parents[2] / "docs" / "access-log.md").read_text()

    def rows(self, header: str) -> list[list[str]]:
        """The rows of the tables with this header, without the ticks."""
        tables = [part.split("\n\n")[0] for part in self.text.split(f"| {header} |\n")[1:]]
        lines = [line for table in tables for line in table.splitlines()[1:]]
        return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]

    def test_it_has_every_field_of_json_in_order(self) -> None:
        record = relayed()
        record.dry_run, record.audit = DryRun(True, Reason.RULE, record.ground), record.ground
        written = json.loads(JsonLines(IDENTITY, "p").line(record, Event.CLOSE, 101.0))
        assert [row[0] for row in self.rows("field | what it says")] == list(written)

    def test_it_has_every_variable_in_order(self) -> None:
        assert [row[0] for row in self.rows("variable | what it says")] == [f"${name}" for name in VARIABLES]

    def test_it_has_every_reason_with_its_event_status_and_flags(self) -> None:
        expected = [[reason.word, reason.event.value, STATUS[reason], FLAGS[reason]] for reason in Reason]
        assert self.rows("reason | event | nginx `$status` | Envoy's flags") == expected

    def test_its_config_is_one(self) -> None:
        (block,) = re.findall(r"```yaml\n(.*?)```", self.text, re.DOTALL)
        stdout, file = config_of(yaml.safe_load(block)).access_log
        assert (stdout.sample.open, file.template) == (0.1, DEFAULT_TEMPLATE)

    def test_its_line_of_nginx_is_the_default(self) -> None:
        assert nginx(of_seed("en.wikipedia.org", 280, 81513)) in self.text

    def test_its_line_of_envoy_is_the_one_that_is_written(self) -> None:
        (form,) = re.findall(r"^\[%START_TIME%\].*$", self.text, re.MULTILINE)
        values = {
            "START_TIME": "2018-08-01T15:32:02.000Z",
            "RESPONSE_FLAGS": "-",
            "CONNECTION_TERMINATION_DETAILS": "-",
            "BYTES_RECEIVED": "298",
            "BYTES_SENT": "4711",
            "DURATION": "750",
            "UPSTREAM_HOST": "208.80.154.224:443",
            "UPSTREAM_CLUSTER_RAW": "outbound|443||en.wikipedia.org",
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": "10.1.2.3",
            "REQUESTED_SERVER_NAME": "en.wikipedia.org",
        }
        assert envoy(relayed()) == re.sub("%([A-Z_]+)%", lambda match: values[match[1]], form) + "\n"
