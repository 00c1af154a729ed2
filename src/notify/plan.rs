//! What is to be said to one recipient -> the message that goes out: fitted to its channel.
//!
//! A contact is told by the first of the asked-for channels that it has; the others follow in
//! `message.then`, should that one fail for good or have no success in time. Ids are derived from what the message is, so
//! planning the same news twice plans the same rows.

use std::sync::Arc;
use std::time::Duration;

use crate::channel::{self, push, sms, whatsapp};
use crate::clock::Timestamp;
use crate::model::{
    AlertId, AlertRef, AlertState, Channel, Content, Fallback, Message, MessageId, Severity,
    Status, Target, Template,
};

/// What makes a message, before it is fitted to its channel.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its id; see [`MessageId::derive`].
    pub id: MessageId,
    /// The alert it tells of.
    pub alert: Option<AlertRef>,
    /// The contact's name.
    pub contact: Option<Arc<str>>,
    /// Channel and address.
    pub target: Target,
    /// Where it goes on to, should this one fail for good.
    pub then: Vec<Target>,
    /// How urgent.
    pub severity: Severity,
    /// What it says, at any length.
    pub content: Content,
    /// How long it may wait to be sent.
    pub expires_in: Duration,
    /// See [`Message::fallback_after`].
    pub fallback_after: Option<Duration>,
}

/// The row of the outbox for `draft`: fitted to its channel, segments counted, queued, due now.
pub fn compose(draft: Draft, now: Timestamp) -> Message {
    let content = fitted(draft.target.channel, draft.content);
    Message {
        id: draft.id,
        alert: draft.alert,
        contact: draft.contact,
        segments: segments(draft.target.channel, &content),
        target: draft.target,
        then: draft.then,
        severity: draft.severity,
        content,
        created_at: now,
        expires_at: now.plus(draft.expires_in),
        status: Status::Queued,
        reason: None,
        detail: None,
        due_at: now,
        updated_at: now,
        attempt_count: 0,
        attempts: Vec::new(),
        left_out: None,
        fallback_after: draft.fallback_after,
        fallback: None,
        provider: None,
        extended: false,
        provider_ref: None,
    }
}

/// The message that goes on with one on the contact's next channel, if there is one. It keeps that
/// one's place, with its `created_at`, and has its whole time to live from now on: what the channel
/// before has used up is not this one's fault.
pub fn next(before: &Message, now: Timestamp) -> Option<Message> {
    let (target, rest) = before.then.split_first()?;
    let first = |alert: &AlertRef| {
        let Target { channel, address } = &before.target;
        before.id == MessageId::derive(alert.id, alert.state, *channel, address)
    };
    let (alert, state) = match &before.alert {
        Some(alert) if first(alert) => (alert.id, alert.state),
        // One from the API, or one of several that tell of the alert: derived from its own id.
        _ => (AlertId::new(*before.id.as_uuid()), AlertState::Firing),
    };
    let draft = Draft {
        id: MessageId::derive(alert, state, target.channel, &target.address),
        alert: before.alert.clone(),
        contact: before.contact.clone(),
        target: target.clone(),
        then: rest.to_vec(),
        severity: before.severity,
        content: before.content.clone(),
        expires_in: before.expires_at.since(before.began_at()),
        fallback_after: before.fallback_after,
    };
    let fallback = Fallback {
        before: Some(before.id),
        since: Some(now),
        is_digest: before.fallback.as_ref().is_some_and(|fallback| fallback.is_digest),
        ..Fallback::default()
    };
    let created_at = before.created_at;
    Some(Message { created_at, fallback: Some(Box::new(fallback)), ..compose(draft, now) })
}

fn fitted(channel: Channel, content: Content) -> Content {
    let text = match channel::fit(channel, &content.text) {
        std::borrow::Cow::Borrowed(same) if same.len() == content.text.len() => content.text,
        fitted => fitted.as_ref().into(),
    };
    let title = content.title.map(|title| match push::title(&title) {
        std::borrow::Cow::Borrowed(same) if same.len() == title.len() => title,
        fitted => fitted.as_ref().into(),
    });
    let template = content.template.map(|template| Template {
        parameters: template
            .parameters
            .iter()
            .map(|parameter| whatsapp::parameter(parameter))
            .collect(),
        ..template
    });
    Content { title, text, template }
}

fn segments(channel: Channel, content: &Content) -> Option<crate::model::Segments> {
    (channel == Channel::Sms).then(|| sms::segments(&content.text))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::book::Book;
    use super::super::contact::Directory;
    use super::super::notifier::{Notifier, Outcome};
    use super::*;
    use crate::model::tell::{News, Policy, StepKind, Turn};
    use crate::model::{Alert, IdSource, SmsEncoding};
    use crate::problem::TomlFile;
    use crate::topic::{TopicLimits, TopicName};

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn directory() -> Directory {
        let text = r#"
            [[contact]]
            name = "ana"
            push = "topic:cold-store"
            sms  = "+4915550100001"

            [[contact]]
            name = "ben"
            sms  = "+4915550100002"

            [[contact]]
            name = "bens-other-self"
            sms  = "+4915550100002"
        "#;
        let file = TomlFile::parse("contacts.toml", text).expect("TOML");
        let (directory, problems) = Directory::load(&[file], &Config::default());
        assert_eq!(problems, []);
        directory
    }

    fn alert(text: &str) -> Alert {
        Alert {
            id: AlertId::new(IdSource::new(1).next(NOW)),
            rule: "freezer-warm".into(),
            key: "kiel/1".into(),
            severity: Severity::Critical,
            state: AlertState::Firing,
            labels: Arc::default(),
            topic: TopicName::parse("site/kiel/freezer/1", TopicLimits::default()).expect("valid"),
            fired_at: NOW,
            changed_at: NOW,
            text: text.into(),
        }
    }

    /// What notify makes of an alert that fires.
    fn told(to: &[&str], by: &[Channel], text: &str) -> Outcome {
        let policy = Policy {
            to: to.iter().map(|name| Arc::from(*name)).collect(),
            by: by.into(),
            expires_in: Some(Duration::from_secs(60)),
            ..Policy::default()
        };
        let news = News {
            alert: alert(text),
            turn: Turn::Raised,
            title: None,
            unrendered: None,
            policy: policy.into(),
        };
        let book = Book { directory: directory(), ..Book::default() };
        Notifier::new(&Config::default(), Duration::ZERO).handle(&book, &news, NOW)
    }

    fn planned(to: &[&str], by: &[Channel], text: &str) -> Vec<Message> {
        told(to, by, text).messages
    }

    fn check(to: &[&str], by: &[Channel], expected: &str) {
        let told = told(to, by, "warm");
        let mut lines: Vec<String> = told
            .messages
            .iter()
            .map(|message| {
                let then: Vec<&str> = message.then.iter().map(|t| t.channel.as_str()).collect();
                let contact = message.contact.as_deref().unwrap_or("-");
                format!("{contact} {} {then:?}", message.target.channel)
            })
            .collect();
        let steps = told.steps.iter().filter(|step| step.what == StepKind::Dropped);
        lines.extend(steps.filter_map(|step| {
            let contact = step.contact.as_deref().unwrap_or("all");
            step.reason.map(|reason| format!("{contact}: {reason}"))
        }));
        assert_eq!(lines.join(", "), expected);
    }

    #[test]
    fn each_contact_gets_one_message_by_its_first_channel() {
        use Channel::{Push, Sms, Webhook};
        check(&["ana"], &[], r#"ana push ["sms"]"#);
        check(&["ana"], &[Sms, Push], r#"ana sms ["push"]"#);
        check(&["ana", "ben"], &[Push, Sms], r#"ana push ["sms"], ben sms []"#);
        check(&["ben", "bens-other-self"], &[], "ben sms []");
        check(&["ana", "ben"], &[Push], "ana push [], ben: no_recipient");
        check(&["ben"], &[Webhook], "all: no_recipient");
        check(&["gone"], &[], "all: no_recipient");
        check(&[], &[], "all: no_recipient");
    }

    #[test]
    fn a_message_is_a_whole_row() {
        let planned = planned(&["ben"], &[], "21 °C");
        let message = &planned[0];
        assert_eq!(message.status, Status::Queued);
        assert_eq!(message.created_at, NOW);
        assert_eq!(message.due_at, NOW);
        assert_eq!(message.expires_at, NOW.plus(Duration::from_secs(60)));
        assert_eq!(message.content.text.as_ref(), "21 °C");
        let segments = message.segments.expect("counted for SMS");
        assert_eq!((segments.encoding, segments.count), (SmsEncoding::Ucs2, 1));
        let alert = message.alert.as_ref().expect("it tells of one");
        assert_eq!((alert.rule.as_ref(), alert.key.as_ref()), ("freezer-warm", "kiel/1"));
    }

    #[test]
    fn planning_twice_plans_the_same_rows() {
        let ids = |to: &[&str]| -> Vec<MessageId> {
            let planned = planned(to, &[], "warm");
            planned.iter().map(|message| message.id).collect()
        };
        assert_eq!(ids(&["ana", "ben"]), ids(&["ana", "ben"]));
    }

    #[test]
    fn too_long_a_text_is_cut_and_the_next_channel_fits_it_again() {
        let planned = planned(&["ana"], &[], &"warm °C ".repeat(400));
        let pushed = &planned[0];
        assert!(pushed.content.text.len() <= push::TEXT_BYTES_MAX);
        assert_eq!(pushed.segments, None);
        let later = NOW.plus(Duration::from_secs(30));
        let texted = next(pushed, later).expect("ana has sms");
        assert_eq!(texted.target.channel, Channel::Sms);
        assert!(texted.segments.is_some());
        assert_eq!(texted.expires_at, later.plus(Duration::from_secs(60)), "a life of its own");
        assert_eq!(texted.began_at(), later);
        assert_eq!(texted.created_at, pushed.created_at);
        assert_ne!(texted.id, pushed.id);
        assert_eq!(next(&texted, later), None);
    }

    #[test]
    fn a_repetition_that_goes_on_by_the_next_channel_took_the_place_of_the_first() {
        let first = planned(&["ana"], &[], "warm").remove(0);
        let alert = first.alert.as_ref().expect("it tells of one").id;
        let Target { channel, address } = &first.target;
        let id = MessageId::derive_nth(alert, AlertState::Firing, 1, *channel, address);
        let again = Message { id, ..first.clone() };
        let (first, again) = (next(&first, NOW).expect("sms"), next(&again, NOW).expect("sms"));
        assert_ne!(first.id, again.id);
        assert_eq!(first.id.partition(), again.id.partition());
    }

    #[test]
    fn template_parameters_are_cleaned() {
        let mut failed = planned(&["ana"], &[], "warm").remove(0);
        failed.content.template = Some(Template {
            name: "alarm".to_owned(),
            language: "en".to_owned(),
            parameters: vec!["kiel\n1".to_owned()],
        });
        let message = next(&failed, NOW).expect("ana has sms");
        let template = message.content.template.expect("kept");
        assert_eq!(template.parameters, ["kiel 1"]);
    }
}
