//! Fields of a body, read with every bound checked.

use bytes::{Buf, TryGetError};

use super::FrameError;
use super::header::Kind;
use crate::ids::{ClusterId, ExtentId, Generation, Namespace, Version};

/// What is left of a body.
pub(super) struct Fields<'a> {
    kind: Kind,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(kind: Kind, body: &'a [u8]) -> Self {
        Self { kind, rest: body }
    }

    pub(super) fn u8(&mut self) -> Result<u8, FrameError> {
        let value = self.rest.try_get_u8();
        self.or_length(value)
    }

    pub(super) fn u16(&mut self) -> Result<u16, FrameError> {
        let value = self.rest.try_get_u16_le();
        self.or_length(value)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        let value = self.rest.try_get_u32_le();
        self.or_length(value)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        let value = self.rest.try_get_u64_le();
        self.or_length(value)
    }

    pub(super) fn cluster(&mut self) -> Result<ClusterId, FrameError> {
        let value = self.rest.try_get_u128_le();
        self.or_length(value).map(ClusterId)
    }

    pub(super) fn namespace(&mut self) -> Result<Namespace, FrameError> {
        self.u64().map(Namespace)
    }

    pub(super) fn generation(&mut self) -> Result<Generation, FrameError> {
        self.u64().map(Generation)
    }

    pub(super) fn extent(&mut self) -> Result<ExtentId, FrameError> {
        Ok(ExtentId { namespace: self.namespace()?, index: self.u64()? })
    }

    pub(super) fn version(&mut self) -> Result<Version, FrameError> {
        Ok(Version { generation: self.generation()?, seq: self.u64()? })
    }

    /// 0 or 1.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Field(name)),
        }
    }

    /// `len` bytes that must be zero.
    pub(super) fn reserved(&mut self, len: usize) -> Result<(), FrameError> {
        let bytes = self.bytes(len)?;
        if bytes.iter().any(|byte| *byte != 0) { Err(FrameError::Field("reserved")) } else { Ok(()) }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(FrameError::Length(self.kind.code()))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may follow the last field.
    pub(super) fn end(self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FrameError::Length(self.kind.code())) }
    }

    fn or_length<T>(&self, value: Result<T, TryGetError>) -> Result<T, FrameError> {
        value.map_err(|_| FrameError::Length(self.kind.code()))
    }
}
