//! Undoes what HTTP calls deflate: zlib's wrapping (RFC 1950) around the stream of that name.
//!
//! flate2's own reader takes a stream that is cut off for one that ends, and does not look at what follows the end.

use std::io::{self, BufRead as _, BufReader, Read};

use flate2::{Decompress, FlushDecompress, Status};

/// Reads what was compressed; an error where it is cut off, broken, or followed by anything.
pub(super) struct ZlibReader<R> {
    source: BufReader<R>,
    state: Decompress,
    ended: bool,
}

impl<R: Read> ZlibReader<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source: BufReader::new(source), state: Decompress::new(true), ended: false }
    }
}

impl<R: Read> Read for ZlibReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            let input = self.source.fill_buf()?;
            if self.ended {
                return if input.is_empty() { Ok(0) } else { Err(broken("something follows its end")) };
            }
            let (is_last, taken, given) = (input.is_empty(), self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(input, buffer, FlushDecompress::None).map_err(broken)?;
            let (taken, given) = (self.state.total_in() - taken, self.state.total_out() - given);
            // Both are parts of a piece that lies in memory.
            let (taken, given) = (usize::try_from(taken).map_err(broken)?, usize::try_from(given).map_err(broken)?);
            self.source.consume(taken);
            self.ended = status == Status::StreamEnd;
            match (taken, given) {
                (_, 1..) => return Ok(given),
                _ if self.ended => {}
                (0, _) if is_last => return Err(io::ErrorKind::UnexpectedEof.into()),
                (0, _) => return Err(broken("it does not go on")),
                _ => {}
            }
        }
        Ok(0)
    }
}

fn broken(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
