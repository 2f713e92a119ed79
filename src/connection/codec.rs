//! How frames are written and read. A frame whose fields would take far more memory than its bytes
//! is refused before it is decoded.

use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use prost::bytes::Buf as _;

use super::reconcile::MAX_UNLISTED;
use crate::{message::wire, proto};

/// Bytes that are gathered before they are handed to the transport, and at most before it is asked
/// whether it is ready: many messages travel together.
const BUFFER_BYTES: usize = 128 << 10;
const YIELD_BYTES: usize = 64 << 10;
/// Acknowledgements, control message, and a few fields of a later protocol.
const OTHER_FIELDS: usize = 64;
/// Fields in a control message: the last answer of a reconciliation is the longest.
const MAX_CONTROL_FIELDS: usize = 2 * MAX_UNLISTED;

/// The stream's codec.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameCodec {
    /// In one frame.
    pub max_messages: usize,
}

/// Its reading half.
#[derive(Debug)]
pub(super) struct FrameDecoder {
    max_fields: usize,
    decoder: ProstDecoder<proto::StreamResponse>,
}

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

impl Codec for FrameCodec {
    type Encode = proto::StreamRequest;
    type Decode = proto::StreamResponse;
    type Encoder = ProstEncoder<proto::StreamRequest>;
    type Decoder = FrameDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(buffers())
    }

    fn decoder(&mut self) -> FrameDecoder {
        FrameDecoder {
            max_fields: self.max_messages + OTHER_FIELDS,
            decoder: ProstCodec::<proto::StreamRequest, _>::raw_decoder(buffers()),
        }
    }
}

impl Decoder for FrameDecoder {
    type Item = proto::StreamResponse;
    type Error = Status;

    fn decode(&mut self, encoded: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let excess =
            |error: crate::message::InvalidMessage| Status::out_of_range(error.to_string());
        wire::check_fields(encoded.chunk(), self.max_fields).map_err(excess)?;
        for (_, embedded) in wire::embedded(encoded.chunk()) {
            wire::check_fields(embedded, MAX_CONTROL_FIELDS).map_err(excess)?;
        }
        self.decoder.decode(encoded)
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}
