//! Numbers as PTX writes them, and the sizes of its types.

use super::ast::Operand;

/// Bytes of a scalar type such as `.b32`.
pub(super) fn bytes_of(kind: &str) -> Option<u32> {
    match kind.trim_start_matches(['.', 'b', 'u', 's', 'f']) {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        "128" => Some(16),
        _ => None,
    }
}

/// A literal after a minus sign.
pub(super) fn negated(value: Operand<'_>) -> Operand<'_> {
    match value {
        Operand::Integer(value) => Operand::Integer(value.wrapping_neg()),
        Operand::Single(bits) => Operand::Single(bits ^ 1 << 31),
        Operand::Double(bits) => Operand::Double(bits ^ 1 << 63),
        other => other,
    }
}

/// A literal, or `None` for a name.
pub(super) fn number<'t>(word: &str) -> Option<Operand<'t>> {
    let first = word.bytes().next()?;
    if !first.is_ascii_digit() {
        return None;
    }
    if let Some(hex) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        return u32::from_str_radix(hex, 16).ok().map(Operand::Single);
    }
    if let Some(hex) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).ok().map(Operand::Double);
    }
    let plain = word.trim_end_matches('U');
    if let Some(hex) = plain
        .strip_prefix("0x")
        .or_else(|| plain.strip_prefix("0X"))
    {
        return u64::from_str_radix(hex, 16)
            .ok()
            .map(|value| Operand::Integer(value as i64));
    }
    if let Some(binary) = plain.strip_prefix("0b") {
        return u64::from_str_radix(binary, 2)
            .ok()
            .map(|value| Operand::Integer(value as i64));
    }
    if plain.len() > 1 && plain.starts_with('0') && plain.bytes().all(|byte| byte.is_ascii_digit())
    {
        return u64::from_str_radix(plain, 8)
            .ok()
            .map(|value| Operand::Integer(value as i64));
    }
    if let Ok(value) = plain.parse::<u64>() {
        return Some(Operand::Integer(value as i64));
    }
    // a decimal has double precision until its use
    plain
        .parse::<f64>()
        .ok()
        .map(|value| Operand::Double(value.to_bits()))
}
