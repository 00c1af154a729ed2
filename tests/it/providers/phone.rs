//! The virtual phone.

use watchbell::model::{Segments, SmsEncoding};

use super::webhook::to;
use super::*;

#[tokio::test]
async fn the_phone_shows_each_message_once() {
    let shared = shared();
    let phone = entry("name = 'phone'\nkind = 'phone'", &shared);
    assert_eq!(phone.channels, Channel::ALL);
    let mut live = shared.screen.subscribe();
    let mut messages = [sms(), whatsapp(), push(), to("https://hook.example.org/hook-t0ken")];
    let mut ids = IdSource::new(9);
    for message in &mut messages {
        message.id = MessageId::new(ids.next(NOW));
        message.segments = Some(Segments { encoding: SmsEncoding::Gsm7, count: 1, units: 9 });
        assert_eq!(words(&phone.provider.send(message).await), "accepted delivered");
    }
    // The screen holds three; the second is shown again.
    phone.provider.send(&messages[1]).await;
    let shown: Vec<_> = shared.screen.recent().iter().map(|shown| shown.id).collect();
    assert_eq!(shown, [messages[2].id, messages[3].id, messages[1].id]);
    let first = live.recv().await.unwrap();
    assert_eq!((first.id, first.address.as_str()), (messages[0].id, "+49…678"));
    let json = serde_json::to_value(&*first).unwrap();
    assert_eq!(json["channel"], "sms");
    assert_eq!(json["alert"]["rule"], "freezer-warm");
    let whole = serde_json::to_string(&shared.screen.recent()).unwrap();
    assert!(!whole.contains(NUMBER) && !whole.contains("hook-t0ken"), "{whole}");
}
