//! What is remembered of a request, so that its repeats get its reply and change nothing.
//!
//! Rows lie in buckets of five minutes by the shard's time, so that old ones go with one range
//! deletion per bucket and no index. A repeat is recognised for at least ten minutes, unless a
//! shard has more requests in that time than it may remember: `requests.rs`.

use bytes::Bytes;

use crate::codec::{Malformed, Scanner, Writer};
use crate::command::RequestTag;
use crate::reply::Reply;

/// Milliseconds of one bucket.
pub const BUCKET_MS: u64 = 5 * 60 * 1_000;

/// Buckets before the current one in which a repeat is looked for.
pub const BUCKETS_BEFORE: u32 = 2;

const FORMAT: u8 = 1;
const WRITTEN: u8 = 0;
const DELETED: u8 = 1;
const DELETED_NOTHING: u8 = 2;

/// The bucket of a time.
pub(crate) fn bucket(time_ms: u64) -> u32 {
    u32::try_from(time_ms / BUCKET_MS).unwrap_or(u32::MAX)
}

/// The first five minutes that are still looked at.
pub(crate) fn oldest_kept(time_ms: u64) -> u32 {
    bucket(time_ms).saturating_sub(BUCKETS_BEFORE)
}

/// The row of a request that was done; `None` if the reply is a refusal, which leaves no row.
pub(crate) fn encode(tag: &RequestTag, reply: &Reply) -> Option<Vec<u8>> {
    let (kind, version, answer) = match reply {
        Reply::Written { version, answer, .. } => (WRITTEN, *version, answer.clone()),
        Reply::Deleted { version, existed, .. } => {
            (if *existed { DELETED } else { DELETED_NOTHING }, *version, Bytes::new())
        }
        Reply::Conflict { .. }
        | Reply::NotFound
        | Reply::FieldNotFound { .. }
        | Reply::RangePastEnd { .. }
        | Reply::FieldMismatch { .. }
        | Reply::TooLarge { .. }
        | Reply::RequestIdReused
        | Reply::Dropped
        | Reply::Swept { .. }
        | Reply::Uploaded { .. }
        | Reply::UploadAborted
        | Reply::UploadNotFound
        | Reply::UploadTaken
        | Reply::UploadMismatch
        | Reply::UploadIncomplete { .. }
        | Reply::UploadCorrupt { .. }
        | Reply::TooManyParts { .. }
        | Reply::TooManyUploads { .. } => return None,
    };
    let mut out = Writer::with_capacity(20 + answer.len());
    out.u8(FORMAT);
    out.u64(tag.fingerprint);
    out.u8(kind);
    out.u64(version);
    out.medium(&answer);
    Some(out.into_vec())
}

/// What a request is answered whose id has this row.
pub(crate) fn decode(row: Bytes, tag: &RequestTag) -> Result<Reply, Malformed> {
    let mut scan = Scanner::new(row);
    scan.format(FORMAT)?;
    let fingerprint = scan.u64("a fingerprint")?;
    let kind = scan.u8("a kind of reply")?;
    let version = scan.u64("a version")?;
    let answer = scan.medium("an answer")?;
    let reply = match kind {
        WRITTEN => Reply::Written { version, answer, bytes: 0, repeated: true },
        DELETED => Reply::Deleted { version, existed: true, repeated: true },
        DELETED_NOTHING => Reply::Deleted { version, existed: false, repeated: true },
        _ => return Err(scan.malformed("a known kind of reply")),
    };
    scan.finish()?;
    Ok(if fingerprint == tag.fingerprint { reply } else { Reply::RequestIdReused })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: RequestTag = RequestTag { id: [1; 16], fingerprint: 9 };

    #[test]
    fn a_reply_is_remembered_as_a_repeat_and_no_truncation_is_read() {
        let answer = Bytes::from_static(b"answer");
        for (reply, remembered) in [
            (
                Reply::Written { version: 5, answer: answer.clone(), bytes: 9, repeated: false },
                Reply::Written { version: 5, answer, bytes: 0, repeated: true },
            ),
            (
                Reply::Deleted { version: 5, existed: true, repeated: false },
                Reply::Deleted { version: 5, existed: true, repeated: true },
            ),
            (
                Reply::Deleted { version: 5, existed: false, repeated: false },
                Reply::Deleted { version: 5, existed: false, repeated: true },
            ),
        ] {
            let row = Bytes::from(encode(&TAG, &reply).expect("it was done"));
            for len in 0..row.len() {
                assert!(decode(row.slice(..len), &TAG).is_err(), "{len} of {}", row.len());
            }
            assert_eq!(decode(row.clone(), &TAG), Ok(remembered));
            let other = RequestTag { fingerprint: 8, ..TAG };
            assert_eq!(decode(row, &other), Ok(Reply::RequestIdReused));
        }
        assert_eq!(encode(&TAG, &Reply::NotFound), None, "a refusal is not remembered");
    }

    #[test]
    fn a_request_is_looked_for_ten_minutes_back_at_least() {
        assert_eq!(oldest_kept(BUCKET_MS - 1), 0);
        assert_eq!(oldest_kept(7 * BUCKET_MS), 5);
        assert_eq!(bucket(u64::MAX), u32::MAX);
    }
}
