//! What becomes of messages that waited long: a person who could not be reached for hours is told
//! how it stands now, not everything that happened meanwhile.
//!
//! Pure. The messages of one instance to one target are a [`Thread`]. When the turn of one of them
//! comes and the thread has waited longer than `collapse_after`, the newest says how it stands, with
//! a line on what it stands for, and the others end: `superseded`, or `over` with the newest, where
//! all of it was over before anybody had heard of it.
//!
//! **Invariant:** a message that may have been sent, or that no alert caused, is left as it is; so is one
//! that tells of several alerts, but for a repetition that says the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::{Config, outcome};
use crate::channel::{self, sms};
use crate::clock::Timestamp;
use crate::model::{
    AlertId, AlertRef, AlertState, Attempt, AttemptOutcome, Channel, Fnv, LeftOut, Message,
    MessageId, Reason, Status, Target, Tells,
};

/// Messages of one rule and instance key to one contact and target. A strong hash, because devices
/// choose the instance key: none may end another's messages. Half of it is kept, because there may
/// be a million: nobody finds a key that has the 128 bits of another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Thread([u8; 16]);

/// A message's place in its thread: the order in which things happened.
pub(super) type Turn = (AlertId, AlertState, Timestamp);

/// No place is before it, and none after the other.
pub(super) const FIRST_TURN: Turn =
    (AlertId::new(uuid::Uuid::nil()), AlertState::ALL[0], Timestamp::from_millis(i64::MIN));
pub(super) const LAST_TURN: Turn =
    (AlertId::new(uuid::Uuid::max()), AlertState::ALL[AlertState::ALL.len() - 1], Timestamp::MAX);

impl Thread {
    fn of(message: &Message, alert: &AlertRef) -> Self {
        let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in [
            &*alert.rule,
            &*alert.key,
            message.target.channel.as_str(),
            message.target.address.expose(),
            message.contact.as_deref().unwrap_or_default(),
        ] {
            hash.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finish();
        let half = digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        Self(*half)
    }
}

/// The message's thread and its place there; `None` for one that no alert caused.
pub(super) fn place(message: &Message) -> Option<(Thread, Turn)> {
    let alert = message.alert.as_ref()?;
    Some((Thread::of(message, alert), (alert.id, alert.state, message.created_at)))
}

/// Whether it goes out only after those before it in its thread: the last that a person hears must
/// be how it stands.
pub(super) fn is_in_order(message: &Message) -> bool {
    message.alert.as_ref().is_some_and(|alert| alert.tells != Tells::Event)
}

/// What a message says that tells of several alerts; `None` for any other.
pub(super) fn says(message: &Message) -> Option<u64> {
    message.alert.as_ref().filter(|alert| alert.tells == Tells::More)?;
    let text = message.left_out.as_ref().map_or(&message.content.text, |sum| &sum.text);
    let mut hash = Fnv::new();
    hash.write(text.as_bytes());
    Some(hash.finish())
}

/// Whether it may be put together with others of its thread, and need not go out as it is. Of those
/// that tell of several alerts only with such as say the same: nobody else says what they do.
pub(super) fn may_join(message: &Message) -> bool {
    let Some(alert) = &message.alert else { return false };
    // An attempt under way or without answer may have reached its person, and one that was taken
    // is there again because an operator wants it so.
    let was_refused = !message.attempts.iter().any(may_have_left);
    // Over twice is over between which something fired.
    let is_news = alert.tells == Tells::More && alert.state == AlertState::Cleared;
    !is_news && message.status == Status::Queued && was_refused
}

/// Whether somebody has been told of an alert by this message, or may have been.
pub(super) fn tells(message: &Message) -> bool {
    matches!(message.status, Status::Sent | Status::Delivered | Status::Read | Status::Undelivered)
        || message.attempts.iter().any(may_have_left)
}

/// Whether the recipient may have it from this attempt. A webhook without answer is tried again with
/// the id that it had, so it must not say something else then.
fn may_have_left(attempt: &Attempt) -> bool {
    attempt.outcome.as_ref().is_none_or(|outcome| match outcome {
        AttemptOutcome::Accepted { .. } | AttemptOutcome::Unknown { .. } => true,
        AttemptOutcome::Retry { reason, .. } => *reason == Reason::NoAnswer,
        AttemptOutcome::Rejected { .. } => false,
    })
}

/// What a decision makes of a thread.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// The message that goes on, with its new text.
    pub(super) kept: Option<Message>,
    /// Those that have ended.
    pub(super) ended: Vec<Message>,
}

/// How messages are put together.
#[derive(Clone, Debug)]
pub(super) struct Collapse {
    zone: TimeZone,
}

impl Collapse {
    pub(super) fn new(config: &Config) -> Self {
        // `Config::problems` has refused a zone that there is not.
        let zone = TimeZone::get(&config.zone).unwrap_or(TimeZone::UTC);
        Self { zone }
    }

    /// What becomes of waiting messages of one thread, oldest first. `more`: there are others, older
    /// than the last of these, that will be decided on afterwards. `told`: whether somebody has been
    /// told of this alert by a message that is not among these.
    pub(super) fn decide(
        &self,
        mut thread: Vec<Message>,
        more: bool,
        mut told: impl FnMut(AlertId) -> bool,
        now: Timestamp,
    ) -> Decision {
        let raises: BTreeSet<AlertId> = alerts_that_are(AlertState::Firing, &thread).collect();
        let Some(mut newest) = thread.pop() else {
            return Decision::default();
        };
        let is_over = alerts_that_are(AlertState::Cleared, std::slice::from_ref(&newest)).next();
        // Nobody is told that something is over of which nobody was told that it had begun.
        let mut must_clear = |alert: AlertId| !raises.contains(&alert) || told(alert);
        let told = carried(&newest).told
            || thread.iter().any(|message| carried(message).told)
            || alerts_that_are(AlertState::Cleared, &thread).any(&mut must_clear)
            || (!more && is_over.is_some_and(&mut must_clear));
        if is_over.is_some() && !told && !more {
            thread.push(newest);
            for message in &mut thread {
                let detail = "it was over before anybody was told of it".to_owned();
                outcome::end(message, Status::Canceled, Reason::Over, detail, now);
            }
            return Decision { kept: None, ended: thread };
        }
        let mut sum = LeftOut { told, ..carried(&newest) };
        for message in &mut thread {
            let one = carried(message);
            sum.count = sum.count.saturating_add(one.count);
            sum.from = sum.from.min(one.from);
            sum.until = sum.until.max(one.until);
            // Its turn is that of the one that has waited longest.
            newest.due_at = newest.due_at.min(message.due_at);
            let detail = format!("message {} says how it stands now", newest.id);
            outcome::end(message, Status::Canceled, Reason::Superseded, detail, now);
        }
        newest.updated_at = now;
        self.reword(&mut newest, sum, now);
        Decision { kept: Some(newest), ended: thread }
    }

    fn reword(&self, message: &mut Message, sum: LeftOut, now: Timestamp) {
        let text = with_line(message.target.channel, &sum.text, &self.line(message, &sum, now));
        if message.target.channel == Channel::Sms {
            message.segments = Some(sms::segments(&text));
        }
        message.content.text = text.into();
        message.left_out = Some(Box::new(sum));
    }

    /// `40 events between 02:10 and 05:40 UTC`; of one alone, since when.
    fn line(&self, message: &Message, sum: &LeftOut, now: Timestamp) -> String {
        let (from, until) = (self.time(sum.from, now), self.time(sum.until, now));
        let zone = if self.zone == TimeZone::UTC { " UTC" } else { "" };
        let is_over = alerts_that_are(AlertState::Cleared, std::slice::from_ref(message)).next();
        match sum.count {
            ..=1 if is_over.is_some() || !is_first(message) => format!("at {from}{zone}"),
            ..=1 => format!("since {from}{zone}"),
            count if from == until => format!("{count} events at {from}{zone}"),
            count => format!("{count} events between {from} and {until}{zone}"),
        }
    }

    /// Hour and minute; the date too, where it is not today's.
    fn time(&self, at: Timestamp, now: Timestamp) -> String {
        let zoned = |time: Timestamp| {
            let time = jiff::Timestamp::from_millisecond(time.wall().as_millis()).ok()?;
            Some(time.to_zoned(self.zone.clone()))
        };
        let (Some(at), Some(now)) = (zoned(at), zoned(now)) else {
            return at.to_string();
        };
        let format = if at.date() == now.date() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
        at.strftime(format).to_string()
    }
}

fn alerts_that_are(state: AlertState, messages: &[Message]) -> impl Iterator<Item = AlertId> {
    let alerts = messages.iter().filter_map(|message| message.alert.as_ref());
    alerts.filter(move |alert| alert.state == state).map(|alert| alert.id)
}

/// What a message stands for: itself, and what earlier decisions left out for it.
fn carried(message: &Message) -> LeftOut {
    if let Some(sum) = &message.left_out {
        return (**sum).clone();
    }
    let at = message.created_at;
    let text = Arc::clone(&message.content.text);
    LeftOut { count: 1, from: at, until: at, told: false, text }
}

/// Whether it is the first that tells of its alert, and no repetition and no other level.
fn is_first(message: &Message) -> bool {
    let Target { channel, address } = &message.target;
    message.alert.as_ref().is_some_and(|alert| {
        message.id == MessageId::derive(alert.id, alert.state, *channel, address)
    })
}

/// The text and, below it, the line; the text is cut where both do not fit the channel.
fn with_line(channel: Channel, text: &str, line: &str) -> String {
    let mut kept = text.to_owned();
    let mut end = "";
    loop {
        let whole = format!("{kept}{end}\n{line}");
        let fitted = channel::fit(channel, &whole);
        if fitted.ends_with(line) || kept.is_empty() {
            return fitted.into_owned();
        }
        for _ in 0..8 {
            kept.pop();
        }
        kept.truncate(kept.trim_end().len());
        end = "...";
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Address, Attempt, Content, IdSource, RunId, Severity, SmsEncoding};
    use crate::topic::{TopicLimits, TopicName};

    /// 2026-09-21 02:00 UTC.
    const NIGHT: i64 = 1_789_956_000_000;

    pub(in crate::dispatch) fn at(minute: i64) -> Timestamp {
        Timestamp::from_millis(NIGHT + 60_000 * minute)
    }

    /// What the nth alert, which fired at this minute, tells at that one.
    pub(in crate::dispatch) fn message(
        alert: i64,
        fired: i64,
        state: AlertState,
        minute: i64,
    ) -> Message {
        let mut ids = IdSource::new(u64::try_from(alert).expect("small"));
        let id = AlertId::next(&mut ids, at(fired), "freezer", "kiel/1");
        let address = Address::Phone("+4915550100001".parse().expect("valid"));
        let text = format!("{alert} {state}");
        Message {
            id: MessageId::derive(id, state, Channel::Sms, &address),
            alert: Some(AlertRef {
                id,
                rule: "freezer".into(),
                key: "kiel/1".into(),
                state,
                topic: TopicName::parse("a/b", TopicLimits::default()).expect("valid"),
                tells: Tells::Alert,
            }),
            contact: Some("ana".into()),
            segments: None,
            target: Target { channel: Channel::Sms, address },
            then: Vec::new(),
            severity: Severity::Warning,
            content: Content { title: None, text: text.into(), template: None },
            created_at: at(minute),
            expires_at: at(minute + 1440),
            status: Status::Queued,
            reason: None,
            detail: None,
            due_at: at(minute),
            updated_at: at(minute),
            attempt_count: 0,
            attempts: Vec::new(),
            left_out: None,
            fallback_after: None,
            fallback: None,
            provider: None,
            extended: false,
            provider_ref: None,
        }
    }

    pub(in crate::dispatch) fn raise(alert: i64, minute: i64) -> Message {
        message(alert, minute, AlertState::Firing, minute)
    }

    pub(in crate::dispatch) fn clear(alert: i64, fired: i64, minute: i64) -> Message {
        message(alert, fired, AlertState::Cleared, minute)
    }

    fn collapse(zone: &str) -> Collapse {
        Collapse::new(&Config { zone: zone.to_owned(), ..Config::default() })
    }

    fn text(decision: &Decision) -> &str {
        decision.kept.as_ref().map_or("", |message| &message.content.text)
    }

    /// `told`: the alerts of which somebody was told. Expected: the text that goes out, and why
    /// the others do not.
    fn check(thread: &[Message], told: &[&Message], expected: (&str, &[Reason])) {
        let told: Vec<AlertId> =
            told.iter().flat_map(|one| one.alert.as_ref()).map(|alert| alert.id).collect();
        let told = |alert: AlertId| told.contains(&alert);
        let decision = collapse("UTC").decide(thread.to_vec(), false, told, at(240));
        let reasons: Vec<Reason> = decision.ended.iter().flat_map(|one| one.reason).collect();
        assert_eq!((text(&decision), reasons.as_slice()), expected);
        assert!(decision.ended.iter().all(|one| one.status == Status::Canceled));
    }

    #[test]
    fn the_newest_says_how_it_stands() {
        use Reason::{Over, Superseded};
        let (one, over, two) = (raise(1, 10), clear(1, 10, 20), raise(2, 30));
        let two_over = clear(2, 30, 50);
        let all = [one.clone(), over, two, two_over];
        check(&[], &[], ("", &[]));
        check(&all[..1], &[], ("1 firing\nsince 02:10 UTC", &[]));
        // Nobody was told: nobody needs to hear that it is over.
        check(&all[..2], &[], ("", &[Over, Over]));
        check(&all, &[], ("", &[Over, Over, Over, Over]));
        // Somebody was told, here or on another channel.
        let line = "2 events between 02:10 and 02:20 UTC";
        check(&all[..2], &[&one], (&format!("1 cleared\n{line}"), &[Superseded]));
        check(&all[1..2], &[&one], ("1 cleared\nat 02:20 UTC", &[]));
        check(&all[1..2], &[], ("1 cleared\nat 02:20 UTC", &[]));
        let line = "3 events between 02:20 and 02:50 UTC";
        check(&all[1..], &[&one], (&format!("2 cleared\n{line}"), &[Superseded, Superseded]));
        // It fires again.
        let line = "3 events between 02:10 and 02:30 UTC";
        check(&all[..3], &[], (&format!("2 firing\n{line}"), &[Superseded, Superseded]));
        let line = "2 events between 02:20 and 02:30 UTC";
        check(&all[1..3], &[&one], (&format!("2 firing\n{line}"), &[Superseded]));
    }

    #[test]
    fn what_somebody_was_told_is_ended_by_a_later_clear_across_decisions() {
        let (over, two, two_over) = (clear(1, 10, 20), raise(2, 30), clear(2, 30, 50));
        let first = collapse("UTC").decide(vec![over, two], false, |_| false, at(40));
        let kept = first.kept.expect("it fires");
        let second = collapse("UTC").decide(vec![kept, two_over], false, |_| false, at(240));
        assert_eq!(text(&second), "2 cleared\n3 events between 02:20 and 02:50 UTC");
    }

    #[test]
    fn a_decision_may_be_made_in_parts() {
        let all: Vec<Message> = (0..40).map(|number| raise(number, 10 + number)).collect();
        let whole = collapse("UTC").decide(all.clone(), false, |_| false, at(240));
        assert_eq!(text(&whole), "39 firing\n40 events between 02:10 and 02:49 UTC");
        assert_eq!(whole.ended.len(), 39);
        let newest = all[39].clone();
        let detail = format!("message {} says how it stands now", newest.id);
        assert!(whole.ended.iter().all(|one| one.detail.as_deref() == Some(&*detail)));
        assert!(whole.ended.iter().all(|one| one.reason == Some(Reason::Superseded)));

        let part = [&all[..20], &[newest]].concat();
        let part = collapse("UTC").decide(part, true, |_| false, at(240));
        let rest = [&all[20..39], &[part.kept.expect("kept")]].concat();
        let rest = collapse("UTC").decide(rest, false, |_| false, at(250));
        assert_eq!(text(&rest), text(&whole));
        let (rest, whole) = (rest.kept.expect("kept"), whole.kept.expect("kept"));
        assert_eq!((rest.left_out, rest.due_at), (whole.left_out, at(10)));

        // A clear whose raise is still to come is not decided on before it.
        let (raised, cleared) = (raise(50, 60), clear(50, 60, 70));
        let first = vec![raise(1, 10), cleared];
        let part = collapse("UTC").decide(first, true, |_| false, at(240));
        let rest = vec![raised, part.kept.expect("there is more")];
        let rest = collapse("UTC").decide(rest, false, |_| false, at(240));
        assert!(rest.kept.is_none());
    }

    #[test]
    fn times_are_in_the_zone_and_have_a_date_where_they_need_one() {
        let decide = |zone: &str, now: Timestamp| {
            let thread = vec![raise(1, 10), raise(2, 40)];
            text(&collapse(zone).decide(thread, false, |_| false, now)).to_owned()
        };
        let line = "2 firing\n2 events between 04:10 and 04:40";
        assert_eq!(decide("Europe/Berlin", at(240)), line);
        let line = "2 firing\n2 events between 2026-09-21 02:10 and 2026-09-21 02:40 UTC";
        assert_eq!(decide("UTC", at(1440)), line);
    }

    #[test]
    fn the_line_fits_the_channel_and_the_segments_are_counted_again() {
        for (character, encoding) in [('a', SmsEncoding::Gsm7), ('ж', SmsEncoding::Ucs2)] {
            let mut long = raise(2, 40);
            long.content.text = std::iter::repeat_n(character, 1600).collect::<String>().into();
            let thread = vec![raise(1, 10), long];
            let decision = collapse("UTC").decide(thread, false, |_| false, at(240));
            let kept = decision.kept.expect("kept");
            assert!(kept.content.text.ends_with("...\n2 events between 02:10 and 02:40 UTC"));
            let segments = kept.segments.expect("counted");
            assert_eq!(segments.encoding, encoding);
            assert!((1580..=1600).contains(&segments.units), "{segments:?}");
        }
    }

    #[test]
    fn what_may_have_been_sent_and_what_no_alert_caused_is_left_alone() {
        let attempt = |outcome| Attempt {
            number: 1,
            provider: "one".into(),
            run: RunId::new(uuid::Uuid::nil()),
            started_at: at(10),
            ended_at: None,
            outcome,
        };
        let (reason, detail) = (Reason::ConnectFailed, String::new());
        let retry = AttemptOutcome::Retry { reason, detail: detail.clone() };
        let accepted = AttemptOutcome::Accepted { provider_ref: None };
        for (outcome, expected) in [
            (Some(retry), true),
            (
                Some(AttemptOutcome::Retry { reason: Reason::NoAnswer, detail: detail.clone() }),
                false,
            ),
            (Some(AttemptOutcome::Rejected { reason, detail: detail.clone() }), true),
            (Some(AttemptOutcome::Unknown { detail, answered: false, cut_off: false }), false),
            (Some(accepted), false),
            (None, false),
        ] {
            let mut message = raise(1, 10);
            message.attempts = vec![attempt(outcome.clone())];
            assert_eq!(may_join(&message), expected, "{outcome:?}");
            assert_eq!(tells(&message), !expected, "{outcome:?}");
        }
        assert!(may_join(&raise(1, 10)));
        assert!(!may_join(&Message { alert: None, ..raise(1, 10) }));
        assert!(!may_join(&Message { status: Status::Sending, ..raise(1, 10) }));
        // One that told of three alerts was ended when the first of them was over.
        let mut digest = raise(1, 10);
        digest.alert = digest.alert.map(|alert| AlertRef { tells: Tells::More, ..alert });
        assert_ne!(says(&digest), says(&raise(1, 10)));
        let thread = |message: &Message| place(message).map(|(thread, _)| thread);
        let ben = Message { contact: Some("ben".into()), ..raise(1, 10) };
        assert_ne!(thread(&ben), thread(&raise(1, 10)));
        assert_eq!(thread(&clear(2, 30, 50)), thread(&raise(1, 10)));
    }
}
