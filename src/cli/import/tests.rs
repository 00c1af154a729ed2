//! Whatever the file: the conversion ends, what it makes loads, and no secret of the file is in it.

use proptest::prelude::*;

use super::*;

fn imported(text: &str) -> (Imported, String) {
    let imported = convert("mqttwarn.ini", &ini::parse(text), &|_| None, &Clock::System);
    let imported = imported.expect("what was made loads");
    let mut said = Vec::new();
    imported.report.write(&mut said).expect("written");
    (imported, String::from_utf8(said).expect("text"))
}

/// Pieces that a file is made of, right and wrong ones.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(vec![
            "[defaults]\nhostname = 'a b'\n", "[defaults]\nport = x\npassword = 'S3CRET'\n", "tls = True\n",
            "skipretained = True\n", "launch = tw, log\n", "[config:tw]\nmodule = 'twilio'\n",
            // Whole, because what goes on with another value is a text like any other.
            "\n[config:tw]\nmodule = twilio\ntargets = {'a': ['AC0123456789abcdef0123456789abcdef', 'S3CRET', '+15005550006', '+4915550100001'],\n 'b': ['x', 'S3CRET', 'y', 'z']}\n",
            "\n[config:mail]\ntargets = {'b': ['S3CRET']}\n", "  }\n", "[config:log]\n", "targets = {'i': ['info']}\n",
            "[a/+]\n", "[a/#/b]\n", "topic = a/{x}\n", "targets = tw:a, log\n", "targets = tw\n",
            "targets = {'a/#': 'tw:a', 'a/b': ['log:i']}\n", "format = {x:.1f} {payload} {{ {%\n",
            "format = f()\n", "filter = f()\n", "title = {a[b]!j}\n", "timeout = 60\n",
            "notify_only_on_timeout = True\n", "priority = 2\n", "[failover]\n", "[cron]\n", "f = 60; now=true\n",
        ]).prop_map(str::to_owned),
        ".{0,20}\n",
        "[ a-z/+#{}'\":,=]{0,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_file_is_converted_and_loads(pieces in proptest::collection::vec(piece(), 0..40)) {
        let (imported, said) = imported(&pieces.concat());
        for text in [&imported.config, &imported.rules, &said] {
            prop_assert!(!text.contains("S3CRET"), "{text}");
        }
    }

    #[test]
    fn any_bytes_are_converted(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        imported(&String::from_utf8_lossy(&bytes));
    }
}
