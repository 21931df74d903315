//! Large field content: runs of bytes in immutable blobs, and how an edit cuts them.
//!
//! A blob is written once and never changed. A field's content is a list of extents, each a run
//! of one blob. Overwriting or appending adds a small blob and cuts the runs around it, so that
//! the disk sees the changed bytes alone. A list may not grow without end: beyond a budget that
//! depends on the content's size, the cheapest neighbours are written again as one.
//!
//! Pure: bytes that must be read come through a function that the caller passes.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Bytes of one chunk row; the last one of a blob may be shorter.
pub const CHUNK_BYTES: u64 = 256 << 10;

/// The most extents that a field may have: 1 GiB in parts of 1 MiB, and as many cuts again.
pub const EXTENTS_MAX: usize = 2_048;

/// The extents that even a short field may have.
const EXTENTS_MIN: usize = 16;

/// How far below its budget a list is brought once it has passed it: small edits then make room
/// for the next ones by joining crumbs, and not by growing one neighbour again and again.
const EXTENTS_SLACK: usize = 4;

/// Beyond [`EXTENTS_MIN`], one extent for each of these bytes: reading stays dominated by
/// chunks and not by crumbs.
const BYTES_PER_EXTENT: u64 = CHUNK_BYTES / 2;

/// Which blob: the command that brought it, and a number within that command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId {
    /// Index of the entry.
    pub index: u64,
    /// Position of the command in its entry.
    pub position: u16,
    /// A payload's slot, or from [`BlobId::APPLIED`] on what apply wrote itself.
    pub number: u16,
}

impl BlobId {
    /// The first number of blobs written at apply; those written at append lie below.
    pub const APPLIED: u16 = 0x8000;
}

/// A run of a blob's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Whose bytes.
    pub blob: BlobId,
    /// First byte in the blob.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// Chunk rows `first..end` of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkSpan {
    /// Whose rows.
    pub blob: BlobId,
    /// The first chunk.
    pub first: u32,
    /// The chunk behind the last.
    pub end: u32,
}

/// The chunk rows that bytes `offset..offset + len` of a blob touch.
pub fn chunks_of(extent: &Extent) -> ChunkSpan {
    let first = (extent.offset / CHUNK_BYTES) as u32;
    let end = (extent.offset + extent.len).div_ceil(CHUNK_BYTES) as u32;
    ChunkSpan { blob: extent.blob, first, end: end.max(first) }
}

/// The chunk rows that `old` touches and `kept` does not, as few spans as possible.
pub fn unreferenced(old: &[Extent], kept: &[Extent]) -> Vec<ChunkSpan> {
    let mut blobs: BTreeMap<BlobId, (Vec<ChunkSpan>, Vec<ChunkSpan>)> = BTreeMap::new();
    for extent in old.iter().filter(|extent| extent.len > 0) {
        blobs.entry(extent.blob).or_default().0.push(chunks_of(extent));
    }
    for extent in kept.iter().filter(|extent| extent.len > 0) {
        if let Some((_, kept)) = blobs.get_mut(&extent.blob) {
            kept.push(chunks_of(extent));
        }
    }
    let mut gone = Vec::new();
    for (blob, (mut touched, mut kept)) in blobs {
        touched.sort_unstable();
        kept.sort_unstable();
        let mut done = 0;
        for span in touched {
            let mut first = span.first.max(done);
            for keep in &kept {
                push_span(&mut gone, ChunkSpan { blob, first, end: keep.first.min(span.end) });
                first = first.max(keep.end);
            }
            push_span(&mut gone, ChunkSpan { blob, first, end: span.end });
            done = done.max(span.end);
        }
    }
    gone
}

fn push_span(spans: &mut Vec<ChunkSpan>, span: ChunkSpan) {
    if span.first >= span.end {
        return;
    }
    match spans.last_mut() {
        Some(last) if last.blob == span.blob && last.end == span.first => last.end = span.end,
        _ => spans.push(span),
    }
}

/// A part of a field's content while a patch is being worked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes in a blob.
    Stored(Extent),
    /// Bytes that become a blob when the patch is done.
    Fresh(Bytes),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Piece::Stored(extent) => extent.len,
            Piece::Fresh(bytes) => bytes.len() as u64,
        }
    }

    fn slice(&self, start: u64, end: u64) -> Piece {
        match self {
            Piece::Stored(extent) => {
                Piece::Stored(Extent { offset: extent.offset + start, len: end - start, ..*extent })
            }
            Piece::Fresh(bytes) => Piece::Fresh(bytes.slice(start as usize..end as usize)),
        }
    }

    /// Bytes that writing this piece again would add.
    fn rewrite_cost(&self) -> u64 {
        match self {
            Piece::Stored(extent) => extent.len,
            Piece::Fresh(_) => 0,
        }
    }
}

/// A field's content as pieces in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    pieces: Vec<Piece>,
}

impl Pieces {
    /// The content that these extents hold.
    pub fn stored(extents: &[Extent]) -> Self {
        Pieces { pieces: extents.iter().copied().map(Piece::Stored).collect() }
    }

    /// The extents that hold the bytes of a range of stored content.
    pub fn range_of(extents: &[Extent], range: Range<u64>) -> Vec<Extent> {
        let mut found = Vec::new();
        let mut at = 0;
        for extent in extents {
            let (from, until) = (range.start.max(at), range.end.min(at + extent.len));
            if from < until {
                let (offset, len) = (extent.offset + from - at, until - from);
                found.push(Extent { blob: extent.blob, offset, len });
            }
            at += extent.len;
        }
        found
    }

    /// Content that is nowhere yet.
    pub fn fresh(bytes: Bytes) -> Self {
        let mut pieces = Pieces::default();
        pieces.push(Piece::Fresh(bytes));
        pieces
    }

    /// The pieces in order; none is empty.
    pub fn into_vec(self) -> Vec<Piece> {
        self.pieces
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(Piece::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a piece at the end; continues the last one if it can.
    pub fn push(&mut self, piece: Piece) {
        if piece.len() == 0 {
            return;
        }
        if let (Some(Piece::Stored(last)), Piece::Stored(next)) = (self.pieces.last_mut(), &piece)
            && last.blob == next.blob
            && last.offset + last.len == next.offset
        {
            last.len += next.len;
            return;
        }
        self.pieces.push(piece);
    }

    /// Replaces the bytes from `offset` on by `piece`, which must end within the content.
    pub fn write(&mut self, offset: u64, piece: Piece) {
        let end = offset + piece.len();
        assert!(end <= self.len(), "a range is checked to end within its field");
        let mut written = Pieces::default();
        self.copy(0, offset, &mut written);
        written.push(piece);
        self.copy(end, self.len(), &mut written);
        *self = written;
    }

    /// Drops the first `bytes` bytes.
    pub fn drop_front(&mut self, bytes: u64) {
        let mut kept = Pieces::default();
        self.copy(bytes.min(self.len()), self.len(), &mut kept);
        *self = kept;
    }

    /// Makes neighbours that are nowhere yet one.
    fn join_fresh(&mut self) {
        let pieces = std::mem::take(&mut self.pieces);
        let mut run: Vec<Bytes> = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Fresh(bytes) => run.push(bytes),
                Piece::Stored(_) => {
                    self.pieces.extend(joined(&mut run));
                    self.pieces.push(piece);
                }
            }
        }
        self.pieces.extend(joined(&mut run));
    }

    /// Adds the bytes `start..end` to the end of `to`.
    fn copy(&self, start: u64, end: u64, to: &mut Pieces) {
        let mut at = 0;
        for piece in &self.pieces {
            let (from, until) = (start.max(at), end.min(at + piece.len()));
            if from < until {
                to.push(piece.slice(from - at, until - at));
            }
            at += piece.len();
        }
    }

    /// Brings the number of pieces within the budget, if it has passed it: again and again makes
    /// the two neighbours one that cost least to write again, of equals the first ones.
    pub fn settle<E>(
        &mut self,
        load: &mut dyn FnMut(&Extent) -> Result<Bytes, E>,
    ) -> Result<(), E> {
        self.join_fresh();
        let budget = pieces_max(self.len());
        if self.pieces.len() <= budget {
            return Ok(());
        }
        while self.pieces.len() > budget - EXTENTS_SLACK {
            let cost = |pair: &[Piece]| pair[0].rewrite_cost() + pair[1].rewrite_cost();
            let (first, _) = self
                .pieces
                .windows(2)
                .map(cost)
                .enumerate()
                .min_by_key(|(_, cost)| *cost)
                .expect("more pieces than the budget means at least two");
            let mut joined = BytesMut::new();
            for piece in self.pieces.drain(first..first + 2) {
                match piece {
                    Piece::Fresh(bytes) => joined.extend_from_slice(&bytes),
                    Piece::Stored(extent) => joined.extend_from_slice(&load(&extent)?),
                }
            }
            self.pieces.insert(first, Piece::Fresh(joined.freeze()));
        }
        Ok(())
    }
}

fn joined(run: &mut Vec<Bytes>) -> Option<Piece> {
    let bytes = match run.len() {
        0 => return None,
        1 => run.remove(0),
        _ => Bytes::from(run.concat()),
    };
    run.clear();
    Some(Piece::Fresh(bytes))
}

/// How many pieces content of this many bytes may have.
fn pieces_max(bytes: u64) -> usize {
    ((bytes / BYTES_PER_EXTENT) as usize).clamp(EXTENTS_MIN, EXTENTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = CHUNK_BYTES;

    fn extent(index: u64, offset: u64, len: u64) -> Extent {
        Extent { blob: BlobId { index, position: 0, number: 0 }, offset, len }
    }

    fn gone(old: &[Extent], kept: &[Extent]) -> Vec<(u64, u32, u32)> {
        let spans = unreferenced(old, kept);
        spans.iter().map(|span| (span.blob.index, span.first, span.end)).collect()
    }

    #[test]
    fn chunks_that_nothing_touches_any_more_are_named() {
        let whole = extent(1, 0, 10 * CHUNK);
        assert_eq!(gone(&[whole], &[]), [(1, 0, 10)]);
        assert_eq!(gone(&[whole], &[whole]), []);
        assert_eq!(gone(&[], &[whole]), []);
        let (head, tail) = (extent(1, 0, CHUNK + 1), extent(1, 8 * CHUNK - 1, 2 * CHUNK));
        assert_eq!(gone(&[whole], &[head, tail]), [(1, 2, 7)]);
        assert_eq!(gone(&[whole], &[tail, head]), [(1, 2, 7)], "whatever the order");
        assert_eq!(gone(&[whole], &[extent(1, 5 * CHUNK, 1)]), [(1, 0, 5), (1, 6, 10)]);
        assert_eq!(gone(&[head, tail], &[]), [(1, 0, 2), (1, 7, 10)]);
        assert_eq!(gone(&[head, extent(1, CHUNK + 5, 5)], &[]), [(1, 0, 2)], "once each");
        assert_eq!(gone(&[whole, extent(2, 0, 5)], &[whole]), [(2, 0, 1)]);
        assert_eq!(gone(&[extent(1, 0, 0)], &[]), []);
    }

    #[test]
    fn a_write_cuts_what_it_covers() {
        let mut pieces = Pieces::stored(&[extent(1, 0, 100)]);
        pieces.write(10, Piece::Stored(extent(2, 0, 5)));
        let expected = [extent(1, 0, 10), extent(2, 0, 5), extent(1, 15, 85)];
        assert_eq!(pieces.clone().into_vec(), expected.map(Piece::Stored));
        pieces.write(0, Piece::Stored(extent(3, 7, 100)));
        assert_eq!(pieces.clone().into_vec(), [Piece::Stored(extent(3, 7, 100))]);
        pieces.push(Piece::Stored(extent(3, 107, 9)));
        assert_eq!(pieces.into_vec(), [Piece::Stored(extent(3, 7, 109))], "a run goes on");
    }

    #[test]
    fn neighbours_that_cost_least_become_one() {
        let extents: Vec<_> = (0..17).map(|index| extent(index, 0, 100 - index)).collect();
        let mut pieces = Pieces::stored(&extents);
        let mut read = Vec::new();
        let mut load = |extent: &Extent| {
            read.push(extent.blob.index);
            Ok::<_, ()>(Bytes::from(vec![extent.blob.index as u8; extent.len as usize]))
        };
        pieces.settle(&mut load).expect("loading can't fail here");
        // 15 and 16 are the smallest two. What they make must be written anyway, so that its
        // neighbour costs no more than itself.
        assert_eq!(read, [15, 16, 14, 13, 12, 11]);
        assert_eq!(pieces.len(), extents.iter().map(|extent| extent.len).sum::<u64>());
        assert_eq!(pieces.into_vec().len(), 12);
    }
}
