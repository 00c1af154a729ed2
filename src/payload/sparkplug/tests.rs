//! A book and what nodes send to it, message by message.

use proptest::prelude::*;

use super::super::tests::{NOW, hex};
use super::wire::{PropertySet, PropertyValue};
use super::*;

/// A metric of a birth: name, alias, type, raw value.
fn born(name: &str, alias: u64, datatype: u32, raw: u32) -> Metric {
    Metric {
        name: Some(name.to_owned()),
        alias: (alias > 0).then_some(alias),
        datatype: Some(datatype),
        int_value: Some(raw),
        ..Metric::default()
    }
}

/// A metric of a DATA message.
fn by_alias(alias: u64, raw: u32) -> Metric {
    Metric { alias: Some(alias), int_value: Some(raw), ..Metric::default() }
}

fn bd_seq(number: u64) -> Metric {
    Metric {
        name: Some("bdSeq".to_owned()),
        datatype: Some(4),
        long_value: Some(number),
        ..Metric::default()
    }
}

fn payload(seq: impl Into<Option<u64>>, metrics: &[Metric]) -> Vec<u8> {
    let metrics = metrics.iter().map(|metric| metric.encode_to_vec().into()).collect();
    let timestamp = Some(1_789_999_999_000);
    Payload { timestamp, metrics, seq: seq.into(), uuid: None }.encode_to_vec()
}

impl Book {
    fn hear(&mut self, topic: &str, bytes: &[u8]) -> Result<Value, Undecodable> {
        self.read(&format!("spBv1.0/plant/{topic}"), bytes, Limits::default(), NOW)
    }

    /// Some fields of what a message says.
    fn told(&mut self, topic: &str, bytes: &[u8], fields: &str) -> String {
        let value = match self.hear(topic, bytes) {
            Ok(Value::Map(map)) => map,
            Ok(other) => panic!("{other}"),
            Err(error) => return format!("! {error}"),
        };
        let field = |name| match value.get(name) {
            Some(Value::Bool(true)) => name.to_string(),
            Some(Value::Bool(false)) => format!("!{name}"),
            Some(other) => other.to_string(),
            None => format!("no {name}"),
        };
        fields.split(' ').map(field).collect::<Vec<_>>().join(" ")
    }

    /// A node `e` of session 7 whose metrics 12 and 13 are known.
    fn with_birth() -> Self {
        let mut book = Self::default();
        let metrics = [bd_seq(7), born("Tank 1/Level", 12, 9, 0), born("Offset", 13, 3, 1)];
        book.hear("NBIRTH/e", &payload(0, &metrics)).expect("a birth");
        book
    }
}

#[test]
fn reads_the_vectors() {
    let death = hex("08fbd8c1a28c34120b0a05626453657120045807");
    let data =
        hex("08fbd8c1a28c34120e100c18fbd8c1a28c3465000060c0120f100d18fbd8c1a28c3450fbffffff0f1800");
    let mut book = Book::default();
    assert_eq!(
        book.told("DDATA/e/d", &data, "metrics born"),
        r##"{"#12":-3.5,"#13":4294967291} !born"##
    );
    let metrics = [born("Level", 12, 9, 0), born("Offset", 13, 3, 0)];
    book.hear("NBIRTH/e", &payload(254, &[bd_seq(7)])).expect("a birth");
    book.hear("DBIRTH/e/d", &payload(255, &metrics)).expect("a birth");
    insta::assert_snapshot!(
        format!("{:?}", book.hear("DDATA/e/d", &data).expect("data")),
        @r#"{"bd_seq": null, "born": true, "device": "d", "group": "plant", "historical": {}, "ignored": false, "is_historical": false, "kind": "DDATA", "metrics": {"Level": -3.5, "Offset": -5}, "node": "e", "quality": {}, "seq": 0, "seq_gap": false, "stale": false, "timestamp": 1790000000123}"#
    );
    insta::assert_snapshot!(
        format!("{:?}", book.hear("NDEATH/e", &death).expect("a death")),
        @r#"{"bd_seq": 7, "born": true, "device": null, "group": "plant", "historical": {}, "ignored": false, "is_historical": false, "kind": "NDEATH", "metrics": {"bdSeq": 7}, "node": "e", "quality": {}, "seq": null, "seq_gap": false, "stale": true, "timestamp": 1790000000000}"#
    );
}

#[test]
fn names_and_types_are_those_of_the_birth() {
    let mut book = Book::with_birth();
    let data = payload(1, &[by_alias(13, 4_294_967_291), by_alias(99, 1)]);
    assert_eq!(
        book.told("NDATA/e", &data, "metrics born seq seq_gap"),
        r##"{"#99":1,"Offset":-5} born 1 !seq_gap"##
    );
    let by_name =
        Metric { name: Some("Offset".to_owned()), alias: None, ..by_alias(0, 4_294_967_291) };
    assert_eq!(book.told("NDATA/e", &payload(2, &[by_name]), "metrics"), r#"{"Offset":-5}"#);
    let empty = Metric { name: Some(String::new()), ..by_alias(13, 7) };
    assert_eq!(book.told("NDATA/e", &payload(3, &[empty]), "metrics"), r#"{"Offset":7}"#);
    // A device's aliases are its own.
    assert_eq!(
        book.told("DDATA/e/d", &payload(4, &[by_alias(13, 1)]), "metrics born"),
        r##"{"#13":1} !born"##
    );
    // A new birth forgets all that was before.
    book.hear("NBIRTH/e", &payload(0, &[bd_seq(8)])).expect("a birth");
    assert_eq!(book.told("NDATA/e", &payload(1, &[by_alias(13, 1)]), "metrics"), r##"{"#13":1}"##);
}

#[test]
fn a_number_that_is_missed_is_told() {
    let mut book = Book::with_birth();
    for (topic, seq, expected) in [
        ("NDATA/e", Some(1), "!seq_gap"),
        ("DBIRTH/e/d", Some(2), "!seq_gap"),
        ("DDATA/e/d", Some(4), "seq_gap"),
        ("NDATA/e", Some(5), "!seq_gap"),
        ("NDATA/e", Some(5), "seq_gap"),
        ("NCMD/e", None, "!seq_gap"),
        ("DDEATH/e/d", Some(6), "!seq_gap"),
        ("NDATA/e", Some(255), "seq_gap"),
        ("NDATA/e", None, "!seq_gap"),
        ("NDATA/e", Some(1), "!seq_gap"),
        ("NDATA/e", None, "!seq_gap"),
        ("NDATA/e", Some(7), "!seq_gap"),
        ("NBIRTH/e", Some(100), "!seq_gap"),
        ("NDATA/e", Some(101), "!seq_gap"),
        ("NDATA/other", Some(3), "!seq_gap"),
        ("NDATA/other", Some(5), "!seq_gap"),
    ] {
        assert_eq!(book.told(topic, &payload(seq, &[]), "seq_gap"), expected, "{topic} {seq:?}");
    }
}

#[test]
fn a_death_of_another_session_is_ignored() {
    let mut book = Book::with_birth();
    let death = |session| payload(None, &[bd_seq(session)]);
    let fields = "ignored stale born bd_seq";
    assert_eq!(book.told("NDEATH/e", &death(6), fields), "ignored !stale born 6");
    assert_eq!(book.told("NDATA/e", &payload(1, &[]), "stale"), "!stale");
    assert_eq!(book.told("NDEATH/e", &death(7), fields), "!ignored stale born 7");
    assert_eq!(
        book.told("NDATA/e", &payload(2, &[by_alias(13, 1)]), "stale metrics"),
        r#"stale {"Offset":1}"#
    );
    book.hear("NBIRTH/e", &payload(0, &[bd_seq(8)])).expect("a birth");
    assert_eq!(book.told("NDATA/e", &payload(1, &[]), "stale"), "!stale");
    // Who has no session number is believed; so is a death of a node that nobody knows.
    assert_eq!(book.told("NDEATH/e", &payload(None, &[]), fields), "!ignored stale born null");
    assert_eq!(book.told("NDEATH/x", &death(1), fields), "!ignored stale !born 1");
    assert_eq!(book.told("NDEATH/x", &death(1), "timestamp"), "1790000000000");
}

#[test]
fn a_node_s_death_takes_its_devices_and_a_device_s_does_not() {
    let mut book = Book::with_birth();
    for device in ["a", "b"] {
        book.hear(&format!("DBIRTH/e/{device}"), &payload(1, &[])).expect("a birth");
    }
    assert_eq!(
        book.told("DDEATH/e/a", &payload(2, &[]), "stale device timestamp"),
        "stale \"a\" 1789999999000"
    );
    for (topic, expected) in
        [("DDATA/e/a", "stale"), ("DDATA/e/b", "!stale"), ("NDATA/e", "!stale")]
    {
        assert_eq!(book.told(topic, &payload(3, &[]), "stale"), expected, "{topic}");
    }
    book.hear("DBIRTH/e/a", &payload(4, &[])).expect("a birth");
    assert_eq!(book.told("DDATA/e/a", &payload(5, &[]), "stale"), "!stale");
    book.hear("NDEATH/e", &payload(None, &[bd_seq(7)])).expect("a death");
    assert_eq!(book.told("DDATA/e/b", &payload(6, &[]), "stale"), "stale");
}

#[test]
fn history_and_quality_are_told_by_name() {
    let mut book = Book::with_birth();
    let fields = "historical is_historical quality";
    let old = Metric { is_historical: Some(true), ..by_alias(13, 1) };
    let data = payload(1, std::slice::from_ref(&old));
    assert_eq!(book.told("NDATA/e", &data, fields), r#"{"Offset":true} is_historical {}"#);
    let quality = PropertyValue { int_value: Some(500), long_value: None };
    let properties = PropertySet {
        keys: vec!["engUnit".to_owned(), "Quality".to_owned()],
        values: vec![Bytes::new(), quality.encode_to_vec().into()],
    };
    let stale = Metric { properties: Some(properties.encode_to_vec().into()), ..by_alias(12, 1) };
    assert_eq!(
        book.told("NDATA/e", &payload(2, &[old, stale]), fields),
        r#"{"Offset":true} !is_historical {"Tank 1/Level":500}"#
    );
}

#[test]
fn a_host_s_state_is_read() {
    let mut book = Book::default();
    for (topic, bytes, expected) in [
        (
            "spBv1.0/STATE/scada",
            r#"{"online":true,"timestamp":5}"#,
            r#"{"host":"scada","kind":"STATE","online":true,"timestamp":5}"#,
        ),
        (
            "STATE/scada",
            "OFFLINE",
            r#"{"host":"scada","kind":"STATE","online":false,"timestamp":null}"#,
        ),
    ] {
        let value = book.read(topic, bytes.as_bytes(), Limits::default(), NOW).expect(topic);
        assert_eq!(value.to_string(), expected);
    }
    for wrong in [&b"[]"[..], b"{}", b"ON", b""] {
        assert!(book.read("STATE/scada", wrong, Limits::default(), NOW).is_err());
    }
}

#[test]
fn what_was_written_is_known_after_a_restart() {
    let mut book = Book::with_birth();
    book.hear("DBIRTH/e/d", &payload(1, &[born("Offset", 13, 3, 0), born("Plain", 0, 1, 0)]))
        .expect("a birth");
    let changed = book.changed();
    let ids: Vec<&str> = changed.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["plant/e"]);
    book.hear("NDATA/e", &payload(2, &[])).expect("data");
    assert!(book.changed().is_empty(), "data changes nothing that is written");
    let mut again = Book::default();
    for (id, node) in changed {
        let row = serde_json::to_vec(&node.expect("it is there")).expect("serializes");
        again.restore(&id, serde_json::from_slice(&row).expect("reads"));
    }
    assert!(again.changed().is_empty());
    let plain = Metric { name: Some("Plain".to_owned()), alias: None, ..by_alias(0, 0xfb) };
    let data = payload(9, &[by_alias(13, 4_294_967_291), plain]);
    assert_eq!(
        again.told("DDATA/e/d", &data, "metrics born seq_gap"),
        r#"{"Offset":-5,"Plain":-5} born !seq_gap"#
    );
    assert_eq!(again.told("NDEATH/e", &payload(None, &[bd_seq(6)]), "ignored"), "ignored");
    again.hear("NDEATH/e", &payload(None, &[bd_seq(7)])).expect("a death");
    assert_eq!(again.changed().len(), 1);
}

#[test]
fn the_book_is_bounded() {
    let mut book = Book::new(Room { nodes_max: 2, node_metrics_max: 5, metrics_max: 8 });
    let at = |seconds: i64| Timestamp::from_millis(seconds * 1_000);
    let hear = |book: &mut Book, topic: &str, metrics: usize, seconds| {
        let metrics: Vec<Metric> = (0..metrics).map(|n| born(&n.to_string(), 0, 3, 0)).collect();
        let topic = format!("spBv1.0/plant/{topic}");
        book.read(&topic, &payload(0, &metrics), Limits::default(), at(seconds)).map(drop)
    };
    let known = |book: &Book| book.nodes.keys().cloned().collect::<Vec<_>>().join(" ");
    hear(&mut book, "NBIRTH/a", 1, 1).expect("room");
    hear(&mut book, "NBIRTH/b", 1, 2).expect("room");
    hear(&mut book, "NDATA/a", 0, 3).expect("data");
    hear(&mut book, "NBIRTH/c", 1, 4).expect("room");
    assert_eq!(known(&book), "plant/a plant/c");
    let gone: Vec<_> = book.changed().into_iter().filter(|(_, node)| node.is_none()).collect();
    assert_eq!(gone, [("plant/b".to_owned(), None)]);
    // The dead give way first.
    hear(&mut book, "NDEATH/c", 0, 5).expect("a death");
    hear(&mut book, "NBIRTH/d", 4, 6).expect("room");
    assert_eq!(known(&book), "plant/a plant/d");
    // One node alone may not have it all; then nothing of the birth is kept.
    assert_eq!(hear(&mut book, "NBIRTH/d", 6, 7), Err(Undecodable::TooManyMetrics(5)));
    assert_eq!(hear(&mut book, "DBIRTH/d/x", 1, 7), Err(Undecodable::TooManyMetrics(5)));
    assert_eq!(book.metrics, 5);
    hear(&mut book, "NBIRTH/a", 4, 8).expect("room");
    assert_eq!((known(&book).as_str(), book.metrics), ("plant/a plant/d", 8));
    hear(&mut book, "DBIRTH/a/x", 1, 9).expect_err("four, a device and one");
    let counted: usize = book.nodes.values().map(Node::len).sum();
    assert_eq!(book.metrics, counted);
}

#[test]
fn what_is_no_message_says_why_and_changes_nothing() {
    let mut book = Book::with_birth();
    let before = format!("{:?}", book.nodes);
    for (topic, bytes, why) in [
        ("XDATA/e", payload(1, &[]), "its topic is not spBv1.0/GROUP/KIND/NODE[/DEVICE]"),
        ("NDATA/e", b"sesame".to_vec(), "its bytes are no protobuf, or cut off"),
        ("NBIRTH/e", hex("0801120508"), "its bytes are no protobuf, or cut off"),
        ("NBIRTH/e", hex("1202ffff"), "its bytes are no protobuf, or cut off"),
        ("NDATA/e", payload(1, &[Metric::default()]), "a metric has neither name nor alias"),
        (
            "NBIRTH/e",
            payload(1, &[born(&"x".repeat(513), 1, 1, 1)]),
            "a metric's name is longer than 512 bytes",
        ),
        (
            "NDATA/e",
            hex("221253504256312e305f434f4d50524553534544"),
            "its body is compressed, which is not read",
        ),
    ] {
        let found = book.told(topic, &bytes, "seq");
        assert_eq!(found, format!("! not a Sparkplug B message: {why}"), "{topic}");
    }
    assert_eq!(format!("{:?}", book.nodes), before);
    let limits = Limits { values_max: FIXED_VALUES + 1, ..Limits::default() };
    let many = payload(1, &[by_alias(12, 1), by_alias(13, 1)]);
    let found = book.read("spBv1.0/plant/NDATA/e", &many, limits, NOW);
    assert_eq!(found, Err(Undecodable::TooManyValues(FIXED_VALUES + 1)));
    let limits = Limits { bytes_max: 3, ..Limits::default() };
    let found = book.read("spBv1.0/plant/NDATA/e", &many, limits, NOW);
    assert_eq!(found, Err(Undecodable::TooLarge(3)));
}

proptest! {
    #[test]
    fn any_bytes_never_panic(
        topic in "(spBv1.0/)?(g|STATE)/(N|D)(BIRTH|DATA|DEATH|CMD)/e(/d)?",
        bytes in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut book = Book::with_birth();
        drop(book.read(&topic, &bytes, Limits::default(), NOW));
    }

    /// Whatever nodes send, the book holds no more than its room, and counts right.
    #[test]
    fn any_messages_stay_within_the_room(
        messages in prop::collection::vec(
            ("(N|D)(BIRTH|DATA|DEATH)/[a-d](/[xy])?", 0..300u64, prop::collection::vec((0..4u64, 0..40u32), 0..4)),
            0..40,
        ),
    ) {
        let room = Room { nodes_max: 3, node_metrics_max: 6, metrics_max: 12 };
        let mut book = Book::new(room);
        for (index, (topic, seq, metrics)) in messages.into_iter().enumerate() {
            let metric = |(alias, datatype): (u64, u32)| born(&format!("m{alias}"), alias, datatype, 1);
            let metrics: Vec<Metric> = metrics.into_iter().map(metric).collect();
            let now = Timestamp::from_millis(i64::try_from(index).expect("few"));
            let topic = format!("spBv1.0/plant/{topic}");
            drop(book.read(&topic, &payload(seq, &metrics), Limits::default(), now));
            let counted: usize = book.nodes.values().map(Node::len).sum();
            prop_assert_eq!(book.metrics, counted);
            prop_assert!(book.len() <= room.nodes_max && counted <= room.metrics_max);
        }
    }
}
