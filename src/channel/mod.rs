//! What fits a channel: how long a text may be, how it is cut, what it may hold.
//!
//! A text that is too long is shortened, not refused: half an alert reaches a person, a dead letter
//! does not. Nothing here knows a provider; a provider with narrower limits keeps them itself.

pub mod push;
pub mod sms;
pub mod whatsapp;

use std::borrow::Cow;

use crate::model::Channel;

/// The text as `channel` can carry it: without control characters other than line breaks, and no
/// longer than its limit.
///
/// Limits: SMS 1600 UTF-16 units (Twilio's and AWS's longest body), WhatsApp 4096 characters, push
/// [`push::TEXT_BYTES_MAX`]; a webhook has none.
pub fn fit(channel: Channel, text: &str) -> Cow<'_, str> {
    let text = clean(text);
    match channel {
        // A single `…` would turn a GSM-7 text into UCS-2 and more than double its price.
        Channel::Sms if sms::is_gsm7(&text) => cut(text, sms::UNITS_MAX, char::len_utf16, "..."),
        Channel::Sms => cut(text, sms::UNITS_MAX, char::len_utf16, "…"),
        Channel::Whatsapp => cut(text, whatsapp::TEXT_CHARACTERS_MAX, |_| 1, "…"),
        Channel::Push => cut(text, push::TEXT_BYTES_MAX, char::len_utf8, "…"),
        Channel::Webhook => text,
    }
}

/// Makes line breaks `\n` and drops every other control character, which payloads bring along and
/// gateways refuse; a tab becomes a space.
fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c.is_control() && c != '\n') {
        return Cow::Borrowed(text);
    }
    let lines = text.replace("\r\n", "\n");
    let kept = lines.chars().filter_map(|character| match character {
        '\r' => Some('\n'),
        '\t' => Some(' '),
        '\n' => Some('\n'),
        _ if character.is_control() => None,
        _ => Some(character),
    });
    Cow::Owned(kept.collect())
}

/// Cuts `text` to at most `max` by `measure`, ending in `end`; never inside a character.
fn cut<'a>(
    text: Cow<'a, str>,
    max: usize,
    measure: impl Fn(char) -> usize,
    end: &str,
) -> Cow<'a, str> {
    // No measure gives more than the bytes.
    if text.len() <= max || text.chars().map(&measure).sum::<usize>() <= max {
        return text;
    }
    let room = max.saturating_sub(end.chars().map(&measure).sum());
    let mut used = 0;
    let kept = text.chars().take_while(|character| {
        used += measure(*character);
        used <= room
    });
    let mut shorter: String = kept.collect();
    shorter.truncate(shorter.trim_end().len());
    shorter.push_str(end);
    Cow::Owned(shorter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::SmsEncoding;

    #[test]
    fn a_long_text_is_cut_at_its_channels_limit() {
        for (channel, character, characters, end) in [
            (Channel::Sms, 'a', 1600, "..."),
            (Channel::Sms, 'ж', 1600, "…"),
            (Channel::Sms, '😀', 800, "…"),
            (Channel::Whatsapp, 'ж', 4096, "…"),
            (Channel::Push, 'a', 1024, "…"),
        ] {
            let text: String = std::iter::repeat_n(character, characters).collect();
            assert_eq!(fit(channel, &text), text, "{channel} {character}");
            let cut = fit(channel, &format!("{text}{character}")).into_owned();
            assert!(cut.ends_with(end), "{channel} {character}");
            assert!(cut.chars().count() <= characters, "{channel} {character}");
            assert!(cut.starts_with(character), "{channel} {character}");
        }
        let long = "a".repeat(100_000);
        assert_eq!(fit(Channel::Webhook, &long), long);
        let cut = fit(Channel::Sms, &long);
        assert_eq!(sms::segments(&cut).encoding, SmsEncoding::Gsm7);
    }

    #[test]
    fn control_characters_go_and_line_breaks_stay() {
        assert_eq!(fit(Channel::Sms, "a\r\nb\rc\td\0\x1be\n"), "a\nb\nc de\n");
        assert!(matches!(fit(Channel::Sms, "plain\ntext"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn what_fits_once_fits_again(
            text in "[a-zß€😀\\n\\t ]{0,40}",
            times in 1_usize..200,
        ) {
            let text = text.repeat(times);
            for channel in Channel::ALL {
                let once = fit(*channel, &text).into_owned();
                prop_assert_eq!(fit(*channel, &once), once.as_str());
            }
        }
    }
}
