//! The protobuf of Sparkplug B, as far as it is read: written by hand after `sparkplug_b.proto`
//! (Sparkplug 3.0, chapter 6.4), so that no protoc is needed to build.
//!
//! Metrics and properties are kept as their bytes and read one at a time: an empty metric is two
//! bytes on the wire and hundreds in memory, so they are counted before. DataSets (field 17),
//! Templates (18) and metadata (8) are skipped.

use bytes::Bytes;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Payload {
    #[prost(uint64, optional, tag = "1")]
    pub(super) timestamp: Option<u64>,
    /// Each a [`Metric`].
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) metrics: Vec<Bytes>,
    #[prost(uint64, optional, tag = "3")]
    pub(super) seq: Option<u64>,
    /// What the body is; `SPBV1.0_COMPRESSED` is in use.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(super) uuid: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metric {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(uint64, optional, tag = "2")]
    pub(super) alias: Option<u64>,
    #[prost(uint32, optional, tag = "4")]
    pub(super) datatype: Option<u32>,
    #[prost(bool, optional, tag = "5")]
    pub(super) is_historical: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub(super) is_null: Option<bool>,
    /// A [`PropertySet`].
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub(super) properties: Option<Bytes>,
    #[prost(uint32, optional, tag = "10")]
    pub(super) int_value: Option<u32>,
    #[prost(uint64, optional, tag = "11")]
    pub(super) long_value: Option<u64>,
    #[prost(float, optional, tag = "12")]
    pub(super) float_value: Option<f32>,
    #[prost(double, optional, tag = "13")]
    pub(super) double_value: Option<f64>,
    #[prost(bool, optional, tag = "14")]
    pub(super) boolean_value: Option<bool>,
    #[prost(string, optional, tag = "15")]
    pub(super) string_value: Option<String>,
    #[prost(bytes = "bytes", optional, tag = "16")]
    pub(super) bytes_value: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PropertySet {
    #[prost(string, repeated, tag = "1")]
    pub(super) keys: Vec<String>,
    /// Each a [`PropertyValue`], in the order of the keys.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) values: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PropertyValue {
    #[prost(uint32, optional, tag = "3")]
    pub(super) int_value: Option<u32>,
    #[prost(uint64, optional, tag = "4")]
    pub(super) long_value: Option<u64>,
}
