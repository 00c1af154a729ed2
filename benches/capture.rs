//! How fast recorded traffic is read: `cargo bench --bench capture`.
//!
//! `LINES=10000000` makes it a week of 1,000 devices at one publish a minute (1.2 GB of temporary
//! files for all forms); the default is a tenth. Reading only: no rule is evaluated.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::Instant;

use watchbell::capture::Reader;

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let lines: u64 =
        std::env::var("LINES").map_or(1_000_000, |lines| lines.parse().expect("LINES: a number"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("traffic");
    type Line = fn(u64, &str, &str) -> String;
    let forms: [(&str, Line); 3] = [
        ("watchbell record", |at, topic, payload| {
            format!(
                r#"{{"at":{at},"topic":"{topic}","payload":"{}"}}"#,
                payload.replace('"', "\\\"")
            )
        }),
        ("mosquitto_sub -F %j", |at, topic, payload| {
            let (secs, millis) = (at / 1000 % 60, at % 1000);
            let length = payload.len();
            let payload = payload.replace('"', "\\\"");
            format!(
                r#"{{"tst":"2026-11-26T12:30:{secs:02}.{millis:03}000Z+0000","topic":"{topic}","qos":0,"retain":0,"payloadlen":{length},"payload":"{payload}"}}"#
            )
        }),
        ("mosquitto_sub -F '%U %t %p'", |at, topic, payload| {
            format!("{}.{:03}000000 {topic} {payload}", at / 1000, at % 1000)
        }),
    ];
    for (name, line) in forms {
        let mut file = BufWriter::new(File::create(&path).unwrap());
        for number in 0..lines {
            let topic = format!("site/kiel/freezer/{}/telemetry", number % 1000);
            let payload = format!(r#"{{"temp_c":-{}.5,"door":"shut"}}"#, number % 30);
            writeln!(file, "{}", line(1_790_000_000_000 + number * 60, &topic, &payload)).unwrap();
        }
        file.into_inner().unwrap();
        let bytes = std::fs::metadata(&path).unwrap().len();
        let (start, mut publishes, mut payload_bytes) = (Instant::now(), 0_u64, 0);
        for one in Reader::open(&path).unwrap() {
            publishes += 1;
            payload_bytes += one.unwrap().payload.len();
        }
        let took = start.elapsed();
        assert_eq!(publishes, lines);
        let per_line_ns = took.as_nanos() / u128::from(lines);
        println!(
            "{name}: {publishes} publishes, {bytes} bytes of lines, {payload_bytes} of payloads: \
             {:.2} s, {per_line_ns} ns a line",
            took.as_secs_f64()
        );
    }
}
