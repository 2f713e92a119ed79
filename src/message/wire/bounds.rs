//! How many fields an encoded message holds, before anything is allocated for them: a field of two
//! bytes can stand for a struct a hundred times as large.

use prost::encoding::{WireType, decode_key, decode_varint};

use super::InvalidMessage;

/// Fails when `encoded` holds more than `most` fields on its first level. What is no protobuf at
/// all passes: the decoder says so better.
pub(crate) fn check_fields(mut encoded: &[u8], most: usize) -> Result<(), InvalidMessage> {
    let mut fields = 0;
    while !encoded.is_empty() {
        fields += 1;
        if fields > most {
            return Err(InvalidMessage::new(
                "encoded message",
                format_args!("more than {most} fields"),
                format!("at most {most}"),
            ));
        }
        if skip_field(&mut encoded).is_none() {
            return Ok(());
        }
    }
    Ok(())
}

/// The content of every embedded message or string on the first level.
pub(crate) fn embedded(mut encoded: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        while !encoded.is_empty() {
            if let (field, Some(content)) = skip_field(&mut encoded)? {
                return Some((field, content));
            }
        }
        None
    })
}

/// Steps over one field: its number, and its content if it has a length.
fn skip_field<'a>(encoded: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let (field, wire_type) = decode_key(encoded).ok()?;
    let length = match wire_type {
        WireType::Varint => {
            decode_varint(encoded).ok()?;
            return Some((field, None));
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::LengthDelimited => usize::try_from(decode_varint(encoded).ok()?).ok()?,
        // Groups, which this protocol has none of.
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    let (content, rest) = encoded.split_at_checked(length)?;
    *encoded = rest;
    let content = (wire_type == WireType::LengthDelimited).then_some(content);
    Some((field, content))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto;

    #[test]
    fn fields_are_counted_without_being_decoded() {
        let message = proto::SequencedMessage::default();
        let frame = proto::StreamResponse {
            messages: vec![message; 1000],
            ..Default::default()
        };
        let encoded = frame.encode_to_vec();
        assert_eq!(encoded.len(), 2000, "two bytes each");
        assert!(check_fields(&encoded, 1000).is_ok());
        assert!(check_fields(&encoded, 999).is_err());
        assert_eq!(embedded(&encoded).count(), 1000);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_counted_or_left_to_the_decoder(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = check_fields(&bytes, 10);
            proptest::prop_assert!(embedded(&bytes).count() <= bytes.len());
        }
    }
}
