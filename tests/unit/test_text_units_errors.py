"""The shared ground: safe text, units, errors, the registry."""

from __future__ import annotations

import importlib.util
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench import registry
from gpuworkbench.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DoesNotFitError,
    ExitCode,
    RunError,
    RunLockedError,
    UsageError,
    WorkbenchError,
)
from gpuworkbench.text import cell_width, safe_text, wrap_text
from gpuworkbench.units import (
    GIB,
    KIB,
    MIB,
    format_bytes,
    format_count,
    format_duration,
    format_number,
    gib,
)


class TestSafeText:
    """No character that acts, hides or reorders comes through."""

    def test_by_unicodes_own_categories(self) -> None:
        acting = {"Cc", "Cf", "Cs", "Zl", "Zp"}
        through = [
            hex(code)
            for code in range(0x110000)
            if unicodedata.category(chr(code)) in acting and chr(code) in safe_text(chr(code))
        ]
        assert through == []

    def test_every_visible_character_stays(self) -> None:
        visible = {"L", "N", "P", "S"}
        fillers = {0x115F, 0x1160, 0x3164, 0xFFA0}  # letters that show nothing
        for code in range(0x110000):
            if unicodedata.category(chr(code))[0] in visible and code not in fillers:
                assert safe_text(chr(code)) == chr(code), hex(code)

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain ä 損失 😀", "plain ä 損失 😀"),
            ("\x1b[31mred", "␛[31mred"),
            ("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇"),
            ("\x9b31m", "<U+009B>31m"),
            ("a\rb\x08c\x7f", "a␍b␈c␡"),
            ("\u202eevil", "<U+202E>evil"),
            ("\udcff", "<U+DCFF>"),
            ("a\tb\nc", "a␉b␊c"),
            ("soft\xadhyphen", "soft<U+00AD>hyphen"),
            ("hidden\U000e0041", "hidden<U+E0041>"),
            ("heart \u2764\ufe0f", "heart \u2764\ufe0f"),
        ],
    )
    def test_examples(self, text: str, shown: str) -> None:
        assert safe_text(text) == shown

    def test_multiline(self) -> None:
        assert safe_text("a\tb\nc\x1b\r\n", multiline=True) == "a    b\nc␛␍\n"

    @given(st.text(max_size=30), st.integers(0, 20), st.booleans())
    def test_a_limit_is_a_limit(self, text: str, limit: int, multiline: bool) -> None:
        whole = safe_text(text, multiline=multiline)
        cut = safe_text(text, multiline=multiline, max_chars=limit)
        assert len(cut) <= limit
        assert cut == whole if len(whole) <= limit else cut[:-1] == whole[: max(limit - 1, 0)]

    @given(st.text(max_size=200))
    def test_showing_twice_changes_nothing(self, text: str) -> None:
        assert safe_text(safe_text(text)) == safe_text(text)

    def test_a_limit_bounds_the_work(self) -> None:
        started = time.monotonic()
        safe_text("\x1b" * 50_000_000, max_chars=80)
        assert time.monotonic() - started < 0.5


class TestWrapping:
    """Lines of at most a width, in columns."""

    @given(st.text("ab 損\u0301 ", max_size=80), st.integers(2, 20))
    def test_no_line_is_wider_and_no_word_is_lost(self, text: str, width: int) -> None:
        lines = wrap_text(text, width)
        assert all(cell_width(line) <= width for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())

    def test_breaks_between_words_and_inside_long_ones(self) -> None:
        assert wrap_text("one two three", 7) == ["one two", "three"]
        assert wrap_text("損失損失", 5) == ["損失", "損失"]
        assert wrap_text("abcdefgh ij", 5) == ["abcde", "fgh", "ij"]
        assert wrap_text("", 5) == [""]

    def test_width_of_wide_and_combining_characters(self) -> None:
        assert (cell_width("ab"), cell_width("損失"), cell_width("e\u0301")) == (2, 4, 1)


class TestUnits:
    """Bytes, seconds and counts as text; unknown is n/a, never 0."""

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "n/a"),
            (float("nan"), "n/a"),
            (float("inf"), "n/a"),
            (0, "0 B"),
            (1023, "1023 B"),
            (KIB, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (MIB - 1, "1.0 MiB"),
            (GIB - 1, "1.00 GiB"),
            (1.5 * GIB, "1.50 GiB"),
            (2000 * GIB, "2000.00 GiB"),
            (-1536, "-1.5 KiB"),
        ],
    )
    def test_bytes(self, value: float | None, text: str) -> None:
        assert format_bytes(value) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "n/a"),
            (float("inf"), "n/a"),
            (0.254, "0.25 s"),
            (9.994, "9.99 s"),
            (9.996, "10 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (75, "1 min 15 s"),
            (3599.6, "1 h 00 min"),
            (3725, "1 h 02 min"),
            (48 * 3600, "2 d 00 h"),
        ],
    )
    def test_durations(self, value: float | None, text: str) -> None:
        assert format_duration(value) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "n/a"),
            (float("nan"), "n/a"),
            (0, "0"),
            (999, "999"),
            (999.6, "1.0k"),
            (1000, "1.0k"),
            (999_949, "999.9k"),
            (999_951, "1.0M"),
            (124_439_808, "124.4M"),
            (985_451_520, "985.5M"),
            (1e12, "1.0T"),
        ],
    )
    def test_counts(self, value: float | None, text: str) -> None:
        assert format_count(value) == text

    def test_numbers(self) -> None:
        assert format_number(3.38214) == "3.3821"
        assert format_number(None) == format_number(float("nan")) == format_number(float("-inf")) == "n/a"
        assert gib(3 * GIB) == 3.0


class TestErrors:
    """One line, with the exit code of the design."""

    @pytest.mark.parametrize(
        ("kind", "code"),
        [
            (WorkbenchError, 1),
            (CheckpointError, 1),
            (UsageError, 2),
            (ConfigError, 2),
            (DataError, 2),
            (RunError, 2),
            (RunLockedError, 3),
            (DoesNotFitError, 4),
        ],
    )
    def test_exit_codes(self, kind: type[WorkbenchError], code: int) -> None:
        assert kind("a").exit_code == code

    def test_the_other_codes(self) -> None:
        assert (ExitCode.STOPPED, ExitCode.SIGINT, ExitCode.SIGTERM) == (75, 128 + 2, 128 + 15)

    def test_one_line(self) -> None:
        error = ConfigError("a\nb\t\x1b[2J \u2028 c", "do\r\nthis")
        assert error.line() == "a b ␛[2J c; do this"
        assert ConfigError("a").line() == "a"

    def test_a_long_message_keeps_both_ends(self) -> None:
        line = ConfigError("start " + "x" * 10**6 + " end", "hint").line()
        assert line.startswith("start xxx")
        assert line.endswith("xxx end; hint")
        assert len(line) < 1000


class TestRegistry:
    """Names lead to code that is there."""

    def test_nearest(self) -> None:
        assert registry.nearest("quikstart", ["quickstart", "other"]) == "quickstart"
        assert registry.nearest("QUICKSTART", ["quickstart"]) == "quickstart"
        assert registry.nearest("zzz", ["quickstart"]) is None
        assert registry.nearest("x" * 10**6, ["quickstart"]) is None

    def test_lookup(self) -> None:
        assert registry.lookup(registry.SCHEDULES, "cosine", "schedule.name") == registry.SCHEDULES["cosine"]
        with pytest.raises(ConfigError, match=r"schedule\.name = 'cosin' is not known") as caught:
            registry.lookup(registry.SCHEDULES, "cosin", "schedule.name")
        assert caught.value.hint.startswith("did you mean 'cosine'? choices: constant, cosine")

    def test_every_target_is_in_a_module_that_exists(self) -> None:
        tables = (registry.SCHEDULES, registry.MEMORY_STRATEGIES)
        strings = [entry for table in tables for entry in table.values()]
        entries = [*registry.MODELS.values(), *registry.OPTIMIZERS.values()]
        pairs = [target for entry in entries for target in entry]
        for target in [*strings, *pairs]:
            module, _, name = target.partition(":")
            assert name.isidentifier()
            assert importlib.util.find_spec(module) is not None, module

    @pytest.mark.parametrize("family", registry.MODELS)
    def test_every_model_spec_is_a_config_with_the_formulas(self, family: str) -> None:
        config = registry.load(registry.MODELS[family].spec)()
        assert config.family == family
        assert config.n_params() > 0
        assert config.flops_per_token(config.seq_len) > 0
        assert config.problems() == []
