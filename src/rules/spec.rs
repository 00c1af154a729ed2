//! What the CEL specification says, case by case, and where the `cel` crate says something else.
//!
//! The sections are those of the specification's own conformance tests (google/cel-spec,
//! tests/simple/testdata); the cases are ours. Results are JSON as [`Value`](crate::payload::Value)
//! shows them, so `double` 2.0 and `int` 2 look alike where the type is not asked for. A deviation that
//! an update of the crate mends fails here too, and is to be moved to the others.

use super::condition::testing::result;

const ERROR: &str = "an error";

#[track_caller]
fn check(section: &str, cases: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (source, expected) in cases {
        let found = result(source, "{\"n\":3}", None);
        let agrees = match *expected {
            ERROR => found.starts_with("! ") || found.starts_with("refused: "),
            _ => found == *expected,
        };
        if !agrees {
            wrong.push(format!("{source}\n    expected {expected}\n    found    {found}"));
        }
    }
    assert!(wrong.is_empty(), "{section}\n{}", wrong.join("\n"));
}

/// basic: literals and variables.
#[test]
fn basic() {
    check(
        "self_eval_zeroish, self_eval_nonzeroish, variables, functions",
        &[
            ("0", "0"),
            ("0u", "0"),
            ("0.0", "0"),
            ("''", "\"\""),
            ("[]", "[]"),
            ("{}", "{}"),
            ("false", "false"),
            ("null", "null"),
            ("b''", "\"\""),
            ("17", "17"),
            ("17u", "17"),
            ("1.25e2", "125"),
            ("-1.5", "-1.5"),
            ("0x1f", "31"),
            ("-0x10", "-16"),
            ("0xffu", "255"),
            ("9223372036854775807", "9223372036854775807"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("18446744073709551615u", "18446744073709551615"),
            ("9223372036854775808", ERROR),
            ("'a\"b'", "\"a\\\"b\""),
            ("'''line\nbreak'''", "\"line\\nbreak\""),
            ("r'\\d'", "\"\\\\d\""),
            ("'\\x41\\u00e4\\U0001F600\\101'", "\"Aä😀A\""),
            ("'\\a\\b\\f\\n\\r\\t\\v' == '\\x07\\x08\\x0c\\x0a\\x0d\\x09\\x0b'", "true"),
            ("b'\\xff\\000'", "\"/wA=\""),
            ("[1, 'b', null]", "[1,\"b\",null]"),
            ("{'k': [true]}", "{\"k\":[true]}"),
            ("payload.n", "3"),
            ("nobody", ERROR),
            ("nobody(1)", ERROR),
            ("1 // the rest is a comment", "1"),
        ],
    );
}

/// parse: how much binds how.
#[test]
fn parse() {
    check(
        "nest, repeat, string_literals, whitespace, comments, precedence",
        &[
            ("1 + 2 * 3 - 4 / 2", "5"),
            ("(1 + 2) * 3", "9"),
            ("10 - 3 - 2", "5"),
            ("2 + 3 == 5 && !false", "true"),
            ("true || false && false", "true"),
            ("true ? 1 : false ? 2 : 3", "1"),
            ("false ? 1 : false ? 2 : 3", "3"),
            ("-2 * -3", "6"),
            ("!!true", "true"),
            ("--4", "4"),
            ("1 < 2 == true", "true"),
            ("[1, 2, 3,][2]", "3"),
            ("{'a': 1,}.a", "1"),
            (" \t\n1\r\n+\u{c}1 ", "2"),
            ("{'a': {'b': {'c': 4}}}.a.b.c", "4"),
            ("[[[5]]][0][0][0]", "5"),
            ("1 +", ERROR),
            ("(1", ERROR),
            ("a b", ERROR),
        ],
    );
}

/// comparisons: equality of like and unlike, order.
#[test]
fn comparisons() {
    check(
        "eq_literal, ne_literal, lt_literal, gt_literal, lte_literal, gte_literal, in, bound",
        &[
            ("7 == 7", "true"),
            ("7 == 8", "false"),
            ("7u == 7u", "true"),
            ("7 == 7u", "true"),
            ("dyn(7) == 7.0", "true"),
            ("dyn(7u) != 7.5", "true"),
            ("'a' == 'a'", "true"),
            ("'a' == 'A'", "false"),
            ("'\u{e9}' == 'e\u{301}'", "false"),
            ("b'a' == b'a'", "true"),
            ("null == null", "true"),
            ("dyn(null) == false", "false"),
            ("dyn('1') == 1", "false"),
            ("dyn([]) == {}", "false"),
            ("0.0 == -0.0", "true"),
            ("0.0 / 0.0 == 0.0 / 0.0", "false"),
            ("0.0 / 0.0 != 0.0 / 0.0", "true"),
            ("[1, 2] == [1, 2]", "true"),
            ("[1, 2] == [2, 1]", "false"),
            ("[1] == [1, 1]", "false"),
            ("[1, 2.0, 3u] == [1.0, 2u, 3]", "true"),
            ("{'a': 1, 'b': 2} == {'b': 2, 'a': 1}", "true"),
            ("{'a': 1} == {'a': 1, 'b': 2}", "false"),
            ("{'a': [1]} != {'a': [2]}", "true"),
            ("{1: 'x'} == {1u: 'x'}", "true"),
            ("type(1) == int && type(1u) == uint", "true"),
            ("false < true", "true"),
            ("true < false", "false"),
            ("-1 < 0", "true"),
            ("-1 < 1u", "true"),
            ("1u < 0", "false"),
            ("1 < 1.5", "true"),
            ("2u >= 2.0", "true"),
            ("'a' < 'b' && 'a' < 'aa' && 'Z' < 'a'", "true"),
            ("b'a' < b'b'", "true"),
            // The int becomes a double, which loses its last digit.
            ("9223372036854775807 < 9223372036854775808.0", "false"),
            ("9223372036854775807 < 9223372036854777857.0", "true"),
            ("1 < '2'", ERROR),
            ("null < 1", ERROR),
            ("[1] < [2]", ERROR),
            // What is not a number has no order; cel-go says so too.
            ("1.0 < 0.0 / 0.0", ERROR),
            ("1 in [3, 2, 1]", "true"),
            ("1 in [1.0]", "true"),
            ("4 in []", "false"),
            ("'a' in {'a': null}", "true"),
            ("'b' in {'a': 1}", "false"),
            ("1 in 1", ERROR),
        ],
    );
}

/// integer_math.
#[test]
fn integer_math() {
    check(
        "int64_math, uint64_math",
        &[
            ("13 + 5", "18"),
            ("13 - 20", "-7"),
            ("-6 * 7", "-42"),
            ("20 / 6", "3"),
            ("-20 / 6", "-3"),
            ("20 % 6", "2"),
            ("-20 % 6", "-2"),
            ("20 % -6", "2"),
            ("5 / 0", ERROR),
            ("5 % 0", ERROR),
            ("9223372036854775807 + 1", ERROR),
            ("-9223372036854775808 - 1", ERROR),
            ("9223372036854775807 * 2", ERROR),
            ("-(-9223372036854775808)", ERROR),
            ("-9223372036854775808 / -1", ERROR),
            ("-9223372036854775808 % -1", ERROR),
            ("13u + 5u", "18"),
            ("13u * 2u", "26"),
            ("13u / 4u", "3"),
            ("13u % 4u", "1"),
            ("1u - 2u", ERROR),
            ("18446744073709551615u + 1u", ERROR),
            ("18446744073709551615u * 2u", ERROR),
            ("5u / 0u", ERROR),
            ("5u % 0u", ERROR),
            ("-(5u)", ERROR),
            ("dyn(1) + 1u", ERROR),
            ("dyn(1) + 1.0", ERROR),
        ],
    );
}

/// fp_math.
#[test]
fn fp_math() {
    check(
        "fp_math",
        &[
            ("1.25 + 2.5", "3.75"),
            ("1.25 - 2.5", "-1.25"),
            ("-1.5 * 3.0", "-4.5"),
            ("9.0 / 4.0", "2.25"),
            ("-(1.5)", "-1.5"),
            ("5.5 % 2.0", ERROR),
            ("1.0 / 0.0 > 1e308", "true"),
            ("-1.0 / 0.0 < -1e308", "true"),
            ("1e308 * 10.0 == 1.0 / 0.0", "true"),
            ("1e-320 / 1e10 == 0.0", "true"),
            ("0.1 + 0.2 == 0.3", "false"),
            ("1.5 + (2.5 + 4.0) == (1.5 + 2.5) + 4.0", "true"),
        ],
    );
}

/// logic.
#[test]
fn logic() {
    check(
        "conditional, AND, OR, NOT",
        &[
            ("true ? 'a' : 'b'", "\"a\""),
            ("false ? 'a' : 7", "7"),
            ("true ? 1 : 1 / 0", "1"),
            ("false ? 1 / 0 : 2", "2"),
            ("1 / 0 == 1 ? 1 : 2", ERROR),
            ("1 ? 2 : 3", ERROR),
            ("true && true", "true"),
            ("true && false", "false"),
            ("false && 1 / 0 == 1", "false"),
            ("1 / 0 == 1 && false", "false"),
            ("1 / 0 == 1 && true", ERROR),
            ("true && 1 / 0 == 1", ERROR),
            ("false && dyn('a')", "false"),
            ("dyn('a') && false", "false"),
            ("dyn('a') && true", ERROR),
            ("true || 1 / 0 == 1", "true"),
            ("1 / 0 == 1 || true", "true"),
            ("1 / 0 == 1 || false", ERROR),
            ("false || 1 / 0 == 1", ERROR),
            ("true || dyn('a')", "true"),
            ("dyn('a') || true", "true"),
            ("dyn('a') || false", ERROR),
            ("!true", "false"),
            ("!dyn(0)", ERROR),
        ],
    );
}

/// lists, fields.
#[test]
fn lists_and_fields() {
    check(
        "concatenation, index, in, size; map_fields, map_has",
        &[
            ("[1] + [2, 3]", "[1,2,3]"),
            ("[] + []", "[]"),
            ("[7, 8, 9][0]", "7"),
            ("[7, 8, 9][2u]", "9"),
            ("[7, 8, 9][dyn(1.0)]", "8"),
            ("[7, 8, 9][dyn(0.1)]", ERROR),
            ("[7, 8, 9][3]", ERROR),
            ("[7, 8, 9][-1]", ERROR),
            ("size([1, 2])", "2"),
            ("[1, 2].size()", "2"),
            ("{'a': 1}['a']", "1"),
            ("{'a': 1}.a", "1"),
            ("{'a': 1}.b", ERROR),
            ("{1: 'x', 2: 'y'}[2]", "\"y\""),
            ("{1: 'x'}[1u]", "\"x\""),
            ("{1: 'x'}[dyn(1.0)]", "\"x\""),
            ("{true: 'x'}[true]", "\"x\""),
            ("{1.5: 'x'}", ERROR),
            ("{'a': 1, 'a': 2}", ERROR),
            ("size({'a': 1})", "1"),
            ("has({'a': null}.a)", "true"),
            ("has({'a': 1}.b)", "false"),
            ("has({'a': 1}.b.c)", ERROR),
            ("has([1].a)", ERROR),
            ("'a'.b", ERROR),
            ("null.a", ERROR),
        ],
    );
}

/// macros.
#[test]
fn macros() {
    check(
        "exists, all, exists_one, map, filter",
        &[
            ("[4, 5].exists(x, x > 4)", "true"),
            ("[4, 5].exists(x, x > 5)", "false"),
            ("[].exists(x, x > 5)", "false"),
            ("[0, 1].exists(x, 1 / x == 1)", "true"),
            ("[0, 2].exists(x, 1 / x == 1)", ERROR),
            ("{'a': 1}.exists(k, k == 'a')", "true"),
            ("1.exists(x, true)", ERROR),
            ("[4, 5].all(x, x > 3)", "true"),
            ("[4, 5].all(x, x > 4)", "false"),
            ("[].all(x, x > 5)", "true"),
            ("[0, 2].all(x, 1 / x == 1)", "false"),
            ("[0, 1].all(x, 1 / x == 1)", ERROR),
            ("{'a': 1}.all(k, k == 'b')", "false"),
            ("[1, 2, 2].exists_one(x, x == 1)", "true"),
            ("[1, 2, 2].exists_one(x, x == 2)", "false"),
            ("[].exists_one(x, x == 2)", "false"),
            ("[1, 0].exists_one(x, 1 / x == 1)", ERROR),
            ("[1, 2].map(x, x * x)", "[1,4]"),
            ("[1, 2, 3].map(x, x > 1, x * 10)", "[20,30]"),
            ("[1, 0].map(x, 1 / x)", ERROR),
            ("{'a': 1}.map(k, k + 'b')", "[\"ab\"]"),
            ("[1, 2, 3].filter(x, x % 2 == 1)", "[1,3]"),
            ("[1, 0].filter(x, 1 / x == 1)", ERROR),
            ("{'a': 1, 'b': 2}.filter(k, k == 'b')", "[\"b\"]"),
            ("[[1], [2]].exists(l, l == [2])", "true"),
        ],
    );
}

/// string.
#[test]
fn string() {
    check(
        "size, starts_with, ends_with, matches, concatenation, contains, bytes_concat",
        &[
            ("size('')", "0"),
            ("size('größe')", "5"),
            ("'😀'.size()", "1"),
            ("size(b'größe')", "7"),
            ("'freezer'.startsWith('free')", "true"),
            ("'freezer'.startsWith('x')", "false"),
            ("'freezer'.startsWith('')", "true"),
            ("'freezer'.endsWith('zer')", "true"),
            ("''.endsWith('a')", "false"),
            ("'freezer'.contains('eez')", "true"),
            ("'freezer'.contains('')", "true"),
            ("'freezer'.matches('^f.*r$')", "true"),
            ("'freezer'.matches('ee')", "true"),
            ("matches('freezer', '^ee')", "false"),
            ("'größe'.matches('ö+')", "true"),
            ("''.matches('')", "true"),
            ("'a'.matches('(')", ERROR),
            ("'ab' + 'cd'", "\"abcd\""),
            ("'' + ''", "\"\""),
            ("b'a' + b'b' == b'ab'", "true"),
            ("1.startsWith('1')", ERROR),
            ("'a' + 1", ERROR),
            ("'abc'[0]", ERROR),
        ],
    );
}

/// conversions.
#[test]
fn conversions() {
    check(
        "bool, bytes, double, dyn, int, string, type, uint",
        &[
            ("bool('true') && bool(true)", "true"),
            ("bool('yes')", ERROR),
            ("bytes('ä') == b'\\xc3\\xa4'", "true"),
            ("double(3) / 2.0", "1.5"),
            ("double('-1.5e2')", "-150"),
            ("double('x')", ERROR),
            ("int(3.99)", "3"),
            ("int(-3.99)", "-3"),
            ("int('-42')", "-42"),
            ("int('4.2')", ERROR),
            ("int(7u)", "7"),
            ("int(1e19)", ERROR),
            ("int(18446744073709551615u)", ERROR),
            ("int(timestamp('1970-01-01T00:01:00Z'))", "60"),
            ("uint(3)", "3"),
            ("uint(-1)", ERROR),
            ("uint(3.99)", "3"),
            ("uint('7')", "7"),
            ("uint(1e20)", ERROR),
            ("string(12)", "\"12\""),
            ("string(12u)", "\"12\""),
            ("string(-0.5)", "\"-0.5\""),
            ("string(true)", "\"true\""),
            ("string(b'\\xc3\\xa4')", "\"ä\""),
            ("string(b'\\xff')", ERROR),
            ("string('a')", "\"a\""),
            ("type(1.0) == double", "true"),
            ("type('') == string && type(b'') == bytes", "true"),
            ("type(null) == null_type && type(true) == bool", "true"),
            ("type([]) == list && type({}) == map", "true"),
            ("type(type(1)) == type && type(int) == type", "true"),
            ("dyn([1]) == [1]", "true"),
        ],
    );
}

/// timestamps.
#[test]
fn timestamps() {
    check(
        "conversions, selectors, selectors_tz, equality, arithmetic, comparisons, range",
        &[
            ("timestamp('2026-03-04T05:06:07Z')", "\"2026-03-04T05:06:07.000Z\""),
            ("timestamp('2026-03-04T05:06:07+01:00')", "\"2026-03-04T04:06:07.000Z\""),
            ("timestamp(60) == timestamp('1970-01-01T00:01:00Z')", "true"),
            ("timestamp('yesterday')", ERROR),
            ("string(timestamp('2026-03-04T05:06:07Z'))", "\"2026-03-04T05:06:07Z\""),
            ("timestamp('2026-03-04T05:06:07Z').getFullYear()", "2026"),
            ("timestamp('2026-03-04T05:06:07Z').getMonth()", "2"),
            ("timestamp('2026-03-04T05:06:07Z').getDate()", "4"),
            ("timestamp('2026-03-04T05:06:07Z').getDayOfMonth()", "3"),
            ("timestamp('2026-03-04T05:06:07Z').getDayOfWeek()", "3"),
            ("timestamp('2026-03-04T05:06:07Z').getDayOfYear()", "62"),
            ("timestamp('2026-03-04T05:06:07Z').getHours()", "5"),
            ("timestamp('2026-03-04T05:06:07Z').getMinutes()", "6"),
            ("timestamp('2026-03-04T05:06:07.089Z').getSeconds()", "7"),
            ("timestamp('2026-03-04T05:06:07.089Z').getMilliseconds()", "89"),
            ("timestamp('2026-03-04T23:30:00Z').getHours('+02:00')", "1"),
            ("timestamp('2026-03-04T23:30:00Z').getDate('+02:00')", "5"),
            ("timestamp('2026-07-04T23:30:00Z').getHours('Europe/Berlin')", "1"),
            ("timestamp('2026-03-04T00:00:00Z') + duration('90m')", "\"2026-03-04T01:30:00.000Z\""),
            ("duration('1h') + timestamp('2026-03-04T00:00:00Z')", "\"2026-03-04T01:00:00.000Z\""),
            ("timestamp('2026-03-04T00:00:00Z') - duration('1s')", "\"2026-03-03T23:59:59.000Z\""),
            ("timestamp('2026-03-04T00:01:00Z') - timestamp('2026-03-04T00:00:00Z')", "60"),
            ("timestamp('2026-03-04T00:00:00Z') < timestamp('2026-03-04T00:00:01Z')", "true"),
            ("duration('1h30m')", "5400"),
            ("duration('-1.5s')", "-1.5"),
            ("duration('250ms') < duration('1s')", "true"),
            ("duration('1m') + duration('1s')", "61"),
            ("duration('1m') - duration('1h') == duration('-59m')", "true"),
            ("duration('fast')", ERROR),
            ("duration('7300s').getHours()", "2"),
            ("duration('130s').getMinutes()", "2"),
            ("duration('130s').getSeconds()", "130"),
            ("string(duration('90s'))", "\"90s\""),
            ("timestamp('10000-01-01T00:00:00Z')", ERROR),
            ("duration('400000000000s')", ERROR),
            ("timestamp('2026-03-04T00:00:00Z') + 1", ERROR),
            ("timestamp('2026-03-04T00:00:00Z') < 1", ERROR),
        ],
    );
}

/// optionals.
#[test]
fn optionals() {
    check(
        "optionals",
        &[
            ("optional.of(1).hasValue()", "true"),
            ("optional.none().hasValue()", "false"),
            ("optional.none().orValue(4)", "4"),
            ("optional.none().or(optional.of(5)).value()", "5"),
            ("optional.ofNonZeroValue(0).hasValue()", "false"),
            ("optional.none().value()", ERROR),
            ("{'a': 1}.?a.value()", "1"),
            ("{'a': 1}.?b.orValue(2)", "2"),
            ("{'a': {'b': 3}}.?a.?b.orValue(0)", "3"),
            ("{'a': {'b': 3}}.?a.b.orValue(0)", "3"),
            ("{}.?a.b.orValue(0)", "0"),
            ("[1, 2][?5].orValue(0)", "0"),
            ("{'a': 1}[?'a'].orValue(0)", "1"),
            ("{'a': 1}.?a.optMap(x, x * 7).value()", "7"),
            ("{'a': 1}.?b.optMap(x, x * 7).hasValue()", "false"),
            ("{'a': {'b': 1}}.?a.optFlatMap(x, x.?b).value()", "1"),
            ("[?optional.none(), ?optional.of(2)]", "[2]"),
            ("{?'a': optional.none()}", "{}"),
            ("optional.of(1) == optional.of(1)", "true"),
            ("has({'a': {'b': 3}}.?a.b)", "true"),
        ],
    );
}

/// Corners of several sections.
#[test]
fn corners() {
    check(
        "parse, conversions, timestamps, fields, comparisons",
        &[
            (".5 + .25", "0.75"),
            ("1.", ERROR),
            ("R'\\' + r\"\"\"a'b\"\"\"", "\"\\\\a'b\""),
            ("br'\\x' == b'\\\\x'", "true"),
            ("'\\U00110000'", ERROR),
            ("'\\ud800'", ERROR),
            ("'\\q'", ERROR),
            ("{'for': 1}.for", "1"),
            ("{'while': 2}.while", "2"),
            ("{'in': 1}.in", ERROR),
            ("bool('1') && bool('t') && bool('TRUE') && bool('True')", "true"),
            ("bool('0') || bool('f') || bool('FALSE') || bool('False')", "false"),
            ("bool('tRuE')", ERROR),
            ("string(1.0)", "\"1\""),
            ("string(1e6)", "\"1000000\""),
            ("bytes(b'abc') == b'abc'", "true"),
            ("int('0x10')", ERROR),
            ("int(' 1')", ERROR),
            ("int(9223372036854775807.0)", ERROR),
            ("int(-9223372036854775808.0)", ERROR),
            ("uint('-1')", ERROR),
            ("uint(1.5e19)", "15000000000000000000"),
            ("double('NaN') == double('NaN')", "false"),
            ("double('inf') > 1e308", "true"),
            ("timestamp('0000-01-01T00:00:00Z')", ERROR),
            ("timestamp('2026-03-04T05:06:07')", ERROR),
            ("timestamp('9999-12-31T23:59:59Z') + duration('1s')", ERROR),
            ("timestamp('0001-01-01T00:00:00Z') - duration('1s')", ERROR),
            ("timestamp('9999-12-31T23:59:59Z') - timestamp('0001-01-01T00:00:00Z')", ERROR),
            ("duration('200000000000s') + duration('200000000000s')", ERROR),
            (
                "string(timestamp('2026-03-04T05:06:07.000000089Z'))",
                "\"2026-03-04T05:06:07.000000089Z\"",
            ),
            ("timestamp('2026-03-04T23:30:00Z').getHours('02:00')", "1"),
            ("timestamp('2026-03-04T23:30:00Z').getHours('Mars/North')", ERROR),
            ("duration('1.5h') == duration('90m')", "true"),
            ("duration('1us') < duration('1ms') && duration('1ns') < duration('1us')", "true"),
            ("duration('')", ERROR),
            ("string(duration('1h0.5s'))", "\"3600.5s\""),
            ("1u in {1: 'a'}", "true"),
            ("dyn(1.0) in {1: 'a'}", "true"),
            ("'a' in 'abc'", ERROR),
            ("{1: 'a', 1u: 'b'}", ERROR),
            ("{1: 'a'}[dyn('1')]", ERROR),
            ("type(optional.none()) == type(optional.of(1))", "true"),
            ("type(now) == type(timestamp(0)) && type(now) != type(now - now)", "true"),
            ("[1, 2, 3].existsOne(x, x == 2)", "true"),
            ("1 == 1 == true", "true"),
            ("true ? 1 : 'a'", "1"),
            ("[1, 2][true]", ERROR),
            ("-(1) - -1", "0"),
            ("'a' 'b'", ERROR),
            ("\"\"\"a\"\"b\"\"\"", "\"a\\\"\\\"b\""),
        ],
    );
}

/// What the specification says otherwise: the case, what it says, what is found.
const DEVIATIONS: &[(&str, &str, &str)] = &[
    ("duration('123.321s').getMilliseconds()", "321: the milliseconds within the second", "123321"),
    (
        "timestamp('2026-03-04 05:06:07Z')",
        "an error: RFC 3339 as the specification takes it has a T",
        "\"2026-03-04T05:06:07.000Z\"",
    ),
    (
        "{'a-b': 1}.`a-b`",
        "1: a field in back quotes",
        "refused: column 11: unsupported syntax: '`'",
    ),
    (
        "{'a': 1}.all(k, v, v > 0)",
        "true: loops with two variables",
        "refused: `all` is written list.all(x, x > 1)",
    ),
];

#[test]
fn deviations_are_known_and_written_down() {
    let paper = include_str!("../../docs/expressions.md");
    for (source, specified, found) in DEVIATIONS {
        assert_eq!(result(source, "{\"n\":3}", None), *found, "{source}: specified is {specified}");
        assert_ne!(specified, found, "{source}");
        assert!(paper.contains(source), "docs/expressions.md lacks {source}");
    }
}
