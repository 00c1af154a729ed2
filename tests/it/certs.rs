//! The small CA: what it makes is asked of `openssl` and of rustls, which have to agree with it.
//!
//! Without the `openssl` command these tests fail: a CA that nobody else has looked at is not
//! tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::RevocationReason;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use watchbell::certs::issue::{Issued, Order, Renewal, issue, renew};
use watchbell::certs::ledger::{Listed, State, due, list};
use watchbell::certs::{self, Init, Pair, crl};
use watchbell::clock::{Clock, Timestamp};

use crate::harness::Place;
use crate::process::{Process, command};

const DAY: Duration = Duration::from_secs(86_400);

/// A site with its CA. `openssl` goes by the machine's clock, so this does too.
struct Site {
    directory: TempDir,
    now: Timestamp,
}

impl Site {
    fn new(intermediate: bool) -> Self {
        let site = Self { directory: tempfile::tempdir().unwrap(), now: Clock::System.now() };
        let name = Some("Kiel site".to_owned());
        let wanted = Init { name, intermediate, ..Init::default() };
        certs::init(site.path(), &wanted, site.now).unwrap();
        site
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn issue(&self, name: &str) -> Issued {
        let order = Order { name: name.to_owned(), ..Order::default() };
        issue(self.path(), &order, self.now).unwrap()
    }

    fn revoke(&self, wanted: &str) -> crl::Revoked {
        crl::revoke(self.path(), wanted, RevocationReason::KeyCompromise, self.now).unwrap()
    }

    fn listed(&self, at: Timestamp) -> Vec<Listed> {
        let (listed, problems) = list(self.path(), at).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        listed
    }

    fn states(&self, name: &str, at: Timestamp) -> Vec<State> {
        self.listed(at).iter().filter(|one| one.name == name).map(|one| one.state).collect()
    }

    /// What openssl says to this command line, and whether it is content.
    fn openssl(&self, arguments: &str) -> (bool, String) {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.path())
            .output()
            .expect("these tests need the openssl command");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Both `openssl verify` and rustls, with the CRL if there is one: `None` is content, else
    /// the words that openssl's and rustls's refusals have.
    fn check(&self, file: &str, expected: Option<(&str, &str)>) {
        let listed = self.file("crl.pem").exists();
        let crl = if listed { "-crl_check -CRLfile crl.pem " } else { "" };
        let command = format!(
            "verify -x509_strict -purpose sslclient {crl}-CAfile ca.pem -untrusted {file} {file}"
        );
        let (content, text) = self.openssl(&command);
        let rustls = self.rustls(file, listed);
        match expected {
            None => {
                assert!(content, "{file}: {text}");
                assert_eq!(rustls, Ok(()), "{file}");
            }
            Some((word, other)) => {
                assert!(!content && text.contains(word), "{file}: {text}");
                let refused = rustls.unwrap_err();
                assert!(refused.contains(other), "{file}: {refused}");
            }
        }
    }

    /// As strict as rustls can be: the whole chain, and a list that has not ended.
    fn rustls(&self, file: &str, listed: bool) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        if listed {
            let lists = CertificateRevocationListDer::pem_file_iter(self.file("crl.pem")).unwrap();
            verifier =
                verifier.with_crls(lists.map(Result::unwrap)).enforce_revocation_expiration();
        }
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(self.file(file)).unwrap().map(Result::unwrap).collect();
        let now = Duration::from_secs(self.now.as_secs().try_into().unwrap());
        verifier
            .build()
            .unwrap()
            .verify_client_cert(&chain[0], &chain[1..], UnixTime::since_unix_epoch(now))
            .map(|_| ())
            .map_err(|error| format!("{error:?}"))
    }
}

#[test]
fn openssl_and_rustls_agree_from_issue_to_revocation() {
    for intermediate in [false, true] {
        let site = Site::new(intermediate);
        let certificates = fs::read_to_string(site.file("server.pem")).unwrap();
        let chain = certificates.matches("BEGIN CERTIFICATE").count();
        assert_eq!(chain, 1 + usize::from(intermediate));
        let (content, text) = site.openssl(
            "verify -x509_strict -purpose sslserver -verify_hostname localhost -CAfile ca.pem -untrusted server.pem server.pem",
        );
        assert!(content, "{text}");

        let (stolen, kept) = (site.issue("pump-7"), site.issue("pump_8"));
        let (_, serial) = site.openssl("x509 -noout -serial -in pump-7.pem");
        assert_eq!(serial.trim(), format!("serial={}", stolen.serial));
        for name in ["pump-7.pem", "pump_8.pem"] {
            site.check(name, None);
        }
        let revoked = site.revoke("pump-7");
        assert_eq!(revoked.certificates, [("pump-7".to_owned(), stolen.serial.clone())]);
        site.check("pump-7.pem", Some(("certificate revoked", "Revoked")));
        site.check("pump_8.pem", None);
        let (content, text) = site.openssl("crl -in crl.pem -noout -text");
        assert!(content && text.contains(&stolen.serial), "{text}");
        assert!(text.contains("Key Compromise") && text.contains("X509v3 CRL Number"), "{text}");
        let signer = if intermediate { "issuing.pem" } else { "ca.pem" };
        let (_, text) = site.openssl(&format!("crl -in crl.pem -noout -verify -CAfile {signer}"));
        assert!(text.contains("verify OK"), "{text}");
        // By serial too, in the form in which others print it.
        let colons: Vec<String> = kept
            .serial
            .as_bytes()
            .chunks(2)
            .map(|two| String::from_utf8_lossy(two).to_lowercase())
            .collect();
        site.revoke(&colons.join(":"));
        site.check("pump_8.pem", Some(("certificate revoked", "Revoked")));
    }
}

#[test]
fn the_roots_key_can_be_put_away_and_fetched_to_revoke_the_issuing_ca() {
    let site = Site::new(true);
    let away = site.file("ca.key.away");
    fs::rename(site.file("ca.key"), &away).unwrap();
    site.issue("pump-7");
    site.check("pump-7.pem", None);
    let revoked = site.revoke("pump-7");
    assert_eq!(revoked.published.without, [site.file("ca.key")]);
    // The root's list is still there: rustls asks about the whole chain.
    site.check("pump-7.pem", Some(("certificate revoked", "Revoked")));
    site.issue("pump-8");
    site.check("pump-8.pem", None);
    for wanted in ["issuing", "ca"] {
        let refused = crl::revoke(site.path(), wanted, RevocationReason::CaCompromise, site.now);
        let refused = refused.unwrap_err().to_string();
        let expected = if wanted == "ca" { "cannot be revoked" } else { "ca.key is missing" };
        assert!(refused.contains(expected), "{refused}");
    }
    assert_eq!(site.states("issuing", site.now), [State::Valid]);

    fs::rename(&away, site.file("ca.key")).unwrap();
    site.revoke("issuing");
    let (content, text) = site.openssl(
        "verify -crl_check_all -CRLfile crl.pem -CAfile ca.pem -untrusted pump-8.pem pump-8.pem",
    );
    assert!(!content && text.contains("certificate revoked"), "{text}");
    assert!(site.rustls("pump-8.pem", true).unwrap_err().contains("Revoked"));
    let order = Order { name: "pump-9".to_owned(), ..Order::default() };
    let refused = issue(site.path(), &order, site.now).unwrap_err().to_string();
    assert!(refused.contains("issuing.pem: it is revoked"), "{refused}");

    // Its successor has another name and list of its own.
    for name in ["issuing.pem", "issuing.key"] {
        fs::rename(site.file(name), site.file(&format!("{name}.old"))).unwrap();
    }
    let wanted = Init { intermediate: true, ..Init::default() };
    certs::init(site.path(), &wanted, site.now).unwrap();
    site.issue("pump-9");
    site.check("pump-9.pem", None);
    assert!(site.rustls("pump-8.pem", true).unwrap_err().contains("Revoked"));
}

#[test]
fn a_renewed_certificate_keeps_names_and_key_and_the_old_one_counts_until_it_is_revoked() {
    let site = Site::new(false);
    let uris = vec!["urn:site:kiel:pump-7".to_owned()];
    let order = Order { name: "pump-7".to_owned(), uris, days: Some(60), ..Order::default() };
    let old = issue(site.path(), &order, site.now).unwrap();
    let before = site.listed(site.now).into_iter().find(|one| one.name == "pump-7").unwrap();
    let key = fs::read(site.file("pump-7.key")).unwrap();
    let later = site.now.plus(40 * DAY);
    assert_eq!(due(site.path(), 30, site.now).unwrap(), Vec::<String>::new());
    assert_eq!(due(site.path(), 30, later).unwrap(), ["pump-7"]);

    // The device has its key, and it is not kept here.
    fs::remove_file(site.file("pump-7.key")).unwrap();
    let new = renew(site.path(), "pump-7", &Renewal::default(), later).unwrap();
    assert_ne!(new.serial, old.serial);
    assert_eq!(
        (new.key, new.ends),
        (None, Timestamp::from_millis(later.plus(59 * DAY).as_secs() * 1000))
    );
    fs::write(site.file("pump-7.key"), &key).unwrap();
    let after = site.listed(later);
    let after: Vec<&Listed> = after.iter().filter(|one| one.name == "pump-7").collect();
    assert_eq!(after[0].names, before.names);
    assert_eq!(after[0].names.last().map(String::as_str), Some("urn:site:kiel:pump-7"));
    assert_eq!(site.states("pump-7", later), [State::Valid, State::Replaced]);
    assert_eq!(due(site.path(), 30, later).unwrap(), Vec::<String>::new());
    let public = |what: &str| site.openssl(what).1;
    assert_eq!(public("x509 -noout -pubkey -in pump-7.pem"), public("pkey -pubout -in pump-7.key"),);

    let renewal = Renewal { new_key: true, revoke_old: true, ..Renewal::default() };
    let newest = renew(site.path(), "pump-7", &renewal, later.plus(DAY)).unwrap();
    assert_eq!(newest.revoked.map(|revoked| revoked.certificates.len()), Some(2));
    assert_ne!(fs::read(site.file("pump-7.key")).unwrap(), key);
    let states = [State::Valid, State::Revoked, State::Revoked];
    assert_eq!(site.states("pump-7", later.plus(DAY)), states);
    // What has ended and was replaced or revoked is no longer shown, and leaves the list.
    let much_later = later.plus(3650 * DAY / 2);
    assert_eq!(crl::publish(site.path(), 90, much_later).unwrap().revoked, 0);

    // Half a replacement, as a crash between key and certificate leaves it.
    fs::write(site.file("pump-7.key"), &key).unwrap();
    let refused = renew(site.path(), "pump-7", &Renewal::default(), later.plus(DAY));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("renew pump-7 --new-key"), "{refused}");
}

#[test]
fn a_device_keeps_its_key_and_only_that_is_taken_of_its_request() {
    let site = Site::new(true);
    let wanted = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout d.key.pem \
                  -subj /CN=admin -addext subjectAltName=DNS:admin \
                  -addext basicConstraints=critical,CA:TRUE -out d.csr";
    let (content, text) = site.openssl(wanted);
    assert!(content, "{text}");
    fs::rename(site.file("d.key.pem"), site.file("device-key")).unwrap();
    let request = fs::read_to_string(site.file("d.csr")).unwrap();
    let order = |text: &str| Order {
        name: "pump-9".to_owned(),
        request: Some(text.to_owned()),
        ..Order::default()
    };
    let issued = issue(site.path(), &order(&request), site.now).unwrap();
    assert_eq!(issued.key, None);
    assert!(!site.file("pump-9.key").exists());
    site.check("pump-9.pem", None);
    let (_, text) = site.openssl("x509 -noout -text -in pump-9.pem");
    assert!(text.contains("CA:FALSE") && !text.contains("admin"), "{text}");
    assert_eq!(
        site.openssl("x509 -noout -pubkey -in pump-9.pem").1,
        site.openssl("pkey -pubout -in device-key").1,
    );
    // Renewed without a request: the same key.
    renew(site.path(), "pump-9", &Renewal::default(), site.now.plus(DAY)).unwrap();
    assert_eq!(
        site.openssl("x509 -noout -pubkey -in pump-9.pem").1,
        site.openssl("pkey -pubout -in device-key").1,
    );

    // One that does not hold: another name under the old signature.
    let forged = {
        let der = site.file("d.der");
        site.openssl("req -in d.csr -outform DER -out d.der");
        let mut bytes = fs::read(&der).unwrap();
        let at = bytes.windows(5).position(|five| five == b"admin").unwrap();
        bytes[at] = b'A';
        fs::write(&der, bytes).unwrap();
        site.openssl("req -inform DER -in d.der -out forged.csr");
        fs::read_to_string(site.file("forged.csr")).unwrap()
    };
    site.openssl("req -new -newkey rsa:1024 -nodes -keyout weak-key -subj /CN=x -out weak.csr");
    let weak = fs::read_to_string(site.file("weak.csr")).unwrap();
    for (text, expected) in [
        (forged.as_str(), "signature does not hold"),
        (weak.as_str(), "too weak"),
        ("", "openssl req -new"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "damaged",
        ),
    ] {
        let mut order = order(text);
        order.name = "pump-10".to_owned();
        let refused = issue(site.path(), &order, site.now).unwrap_err().to_string();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    assert_eq!(site.states("pump-10", site.now), []);
}

#[test]
fn a_lost_list_is_made_again_whole_and_its_number_only_grows() {
    let site = Site::new(false);
    let serial = site.issue("pump-7").serial;
    let first = site.revoke("pump-7").published;
    let second = crl::publish(site.path(), 30, site.now).unwrap();
    assert!(second.number > first.number, "{second:?}");
    assert_eq!(second.revoked, 1);
    fs::remove_file(site.file("crl.pem")).unwrap();
    assert_eq!(site.states("pump-7", site.now), [State::Revoked]);
    let third = crl::publish(site.path(), 30, site.now.plus(Duration::from_secs(5))).unwrap();
    assert_eq!(third.revoked, 1);
    assert!(third.number > second.number, "{third:?}");
    site.check("pump-7.pem", Some(("certificate revoked", "Revoked")));
    // And the other way round: the list remembers what the ledger has lost.
    fs::remove_dir_all(site.file("issued")).unwrap();
    assert_eq!(crl::publish(site.path(), 30, site.now).unwrap().revoked, 1);
    assert_eq!(
        site.listed(site.now).iter().find(|one| one.serial == serial).unwrap().state,
        State::Revoked
    );
}

#[test]
fn what_a_crash_leaves_in_the_ledger_holds_up_nothing() {
    let site = Site::new(false);
    site.issue("pump-7");
    // Half a file under its temporary name, which the next write replaces.
    for name in ["issued/pump-8.00.pem.new", "crl.pem.new", "pump-8.pem.new", "pump-8.key.new"] {
        fs::write(site.file(name), "-----BEGIN CERTI").unwrap();
    }
    site.issue("pump-8");
    site.revoke("pump-7");
    site.check("pump-8.pem", None);
    assert_eq!(site.states("pump-8", site.now), [State::Valid]);
    // In the ledger and not handed out: the name is taken, and the answer says what next.
    fs::remove_file(site.file("pump-8.pem")).unwrap();
    fs::remove_file(site.file("pump-8.key")).unwrap();
    let order = Order { name: "pump-8".to_owned(), ..Order::default() };
    let refused = issue(site.path(), &order, site.now).unwrap_err().to_string();
    assert!(refused.contains("certs renew pump-8"), "{refused}");
    // A revoked name is free, and its certificates stay revoked.
    issue(
        site.path(),
        &Order { name: "pump-7".to_owned(), ..Order::default() },
        site.now.plus(DAY),
    )
    .unwrap();
    assert_eq!(site.states("pump-7", site.now.plus(DAY)), [State::Valid, State::Revoked]);
    // A file that somebody has damaged is named and holds up nothing else.
    fs::write(site.file("junk.pem"), "junk").unwrap();
    let (listed, problems) = list(site.path(), site.now).unwrap();
    assert!(listed.len() > 3);
    assert!(problems.len() == 1 && problems[0].to_string().contains("junk.pem"), "{problems:?}");
    site.revoke("pump-8");
}

#[test]
fn certificates_from_before_the_ledger_can_be_renewed_and_revoked() {
    let site = Site::new(false);
    site.issue("pump-7");
    fs::remove_dir_all(site.file("issued")).unwrap();
    let renewal = Renewal { revoke_old: true, ..Renewal::default() };
    fs::copy(site.file("pump-7.pem"), site.file("before")).unwrap();
    let new =
        renew(site.path(), "pump-7", &renewal, site.now.plus(Duration::from_secs(1))).unwrap();
    assert_eq!(new.revoked.unwrap().certificates.len(), 1);
    site.check("before", Some(("certificate revoked", "Revoked")));
    site.check("pump-7.pem", None);
}

#[test]
fn many_at_once_do_not_tread_on_each_other() {
    let site = Site::new(false);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let site = &site;
            scope.spawn(move || {
                let name = format!("pump-{number}");
                site.issue(&name);
                site.revoke(&name);
            });
        }
    });
    let revoked = site.listed(site.now).iter().filter(|one| one.state == State::Revoked).count();
    assert_eq!(revoked, 8);
    assert_eq!(crl::publish(site.path(), 90, site.now).unwrap().revoked, 8);
}

/// What a command says, with its code.
async fn said(place: &Place, arguments: &[&str], code: i32, expected: &[&str]) {
    let said = command(place, arguments).await;
    assert_eq!(said.code, code, "{arguments:?}: {said:?}");
    let text = if code == 1 { &said.err } else { &said.out };
    for part in expected {
        assert!(text.contains(part), "{arguments:?}: {part}: {said:?}");
    }
}

#[tokio::test]
async fn a_site_in_commands() {
    let place = Place::new("[broker]\nlisten_tls = '127.0.0.1:18831'");
    let site = |words: &'static str| {
        let mut all = vec!["certs", "--dir", "site"];
        all.extend(words.split(' '));
        all
    };
    for (words, code, expected) in [
        ("list", 1, &["site: ", "--dir"][..]),
        ("issue pump-7", 1, &["site/ca.pem is missing", "certs init"]),
        (
            "init --name Kiel --days 3000 --intermediate --host broker.example",
            0,
            &["wrote site/issuing.key", "safe place offline"],
        ),
        ("init", 1, &["--force replaces it"]),
        (
            "issue pump-7",
            0,
            &["wrote site/pump-7.key", "pump-7 ends ", "-p 18831 --cafile site/ca.pem"],
        ),
        ("client pump-8", 0, &["wrote site/pump-8.key"]),
        ("issue pump-7", 1, &["--force replaces it", "certs renew pump-7"]),
        ("issue ../x", 1, &["`../x` cannot name"]),
        ("issue a b --dns c", 1, &["one NAME at a time"]),
        ("issue _", 1, &["cannot name"]),
        ("issue proxy_1 --server", 1, &["--dns NAME or --ip ADDRESS"]),
        ("issue proxy --server --ip 192.168.1.7 --days 20", 0, &["wrote site/proxy.pem"]),
        ("list --expiring 30d", 3, &["proxy", "in 18 days"]),
        ("renew --expiring 30d --days 90", 0, &["wrote site/proxy.pem", "count until they end"]),
        ("list --expiring 30d", 0, &["Nothing ends in that time."]),
        ("renew nobody", 1, &["no certificate `nobody`"]),
        ("renew issuing", 1, &["a CA is replaced"]),
        ("list --revoked", 0, &["Nothing is revoked."]),
        (
            "revoke pump-7 --reason keycompromise",
            0,
            &["revoked pump-7 ", "wrote site/crl.pem", "1 revoked", "broker.crl = site/crl.pem"],
        ),
        ("revoke pump-7", 1, &["revoked already"]),
        ("revoke 00", 1, &["no certificate `00`"]),
        ("renew pump-7", 1, &["is revoked"]),
        ("renew pump-8 --revoke-old", 0, &["revoked pump-8 ", "2 revoked"]),
        ("list --revoked", 0, &["revoked: keyCompromise", "revoked: superseded"]),
        ("list --json", 0, &["\"state\": \"revoked\"", "\"kind\": \"server\"", "\"days_left\""]),
        ("crl --days 10", 0, &["2 revoked"]),
        ("renew server", 0, &["wrote site/server.pem"]),
    ] {
        said(&place, &site(words), code, expected).await;
    }
    said(&place, &["device", "add", "pump-9"], 0, &["-p 18831 "]).await;
    let bad = command(&place, &site("revoke pump-8 --reason lost")).await;
    assert!(bad.code == 2 && bad.err.contains("keyCompromise"), "{bad:?}");
}

#[tokio::test]
async fn devices_of_an_issuing_ca_are_let_in() {
    let place = Place::new("[broker]\ncrl = \"certs/crl.pem\"\n");
    said(&place, &["certs", "init", "--intermediate", "--force"], 0, &["issuing.pem"]).await;
    std::fs::remove_file(place.path("certs/ca.key")).unwrap();
    let process = Process::start(place).await;
    process.done(&["certs", "issue", "pump-7"]).await;
    let Pair { cert, key } = Pair::of(Path::new("certs"), "pump-7");
    let arguments = ["--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let mut all = vec!["pub", "--tls"];
    all.extend(arguments);
    all.extend(["devices/pump-7/alarm", "hi"]);
    process.done(&all).await;
    let now = Clock::System.now();
    for (certificate, days) in [("server", 397), ("ca", 3650), ("crl", 90)] {
        let label = format!("certificate=\"{certificate}\"");
        let name = format!("certificate_ends_timestamp_seconds{{{label}}}");
        let ends = i64::try_from(process.api.metric(&name).await).unwrap();
        let left = (ends - now.as_secs()).div_euclid(86_400);
        assert!((days - 2..=days).contains(&left), "{certificate}: {left}");
    }
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_in_the_log() {
    let place = Place::new("");
    said(&place, &["certs", "renew", "server", "--days", "20"], 0, &[]).await;
    let process = Process::start(place).await;
    let line = crate::harness::found("the warning", async || {
        let log = process.log();
        log.lines()
            .find(|line| line.contains("the server's certificate ends at"))
            .map(str::to_owned)
    })
    .await;
    for part in ["WARN", "broker.cert: certs/server.pem", "renew it before"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}
