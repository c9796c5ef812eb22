/// SentencePiece's precompiled normalizer: a double-array trie from byte strings to replacements.
///
/// Layout: the size of the trie as a 32-bit number, the trie, then the zero-terminated replacements.
/// A unit of the trie (Darts-clone) has its label in the low byte, a leaf flag in bit 8 and the
/// offset to its children above that.
struct CharacterMap {
  private let units: [UInt32]
  private let replacements: [UInt8]

  /// Returns nil for an empty blob. Throws ``MatryoshkaError/invalidTokenizer(reason:)``.
  init?(_ blob: ArraySlice<UInt8>) throws {
    if blob.isEmpty { return nil }
    let damaged = MatryoshkaError.invalidTokenizer(reason: "its character map is damaged")
    let bytes = Array(blob)
    guard bytes.count >= 8 else { throw damaged }
    func word(_ offset: Int) -> UInt32 {
      (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << UInt32(8 * $1) }
    }
    let size = Int(word(0))
    guard size >= 4, size % 4 == 0, size <= bytes.count - 4 else { throw damaged }
    units = (0..<size / 4).map { word(4 + 4 * $0) }
    replacements = Array(bytes[(4 + size)...]) + [0]
  }

  /// The longest entry that matches `text` at `start`: its length and its place for
  /// `replacement(at:)`. nil if nothing matches.
  func longestMatch(_ text: UnsafeBufferPointer<UInt8>, from start: Int) -> (length: Int, value: Int)? {
    var node = offset(units[0])
    var found: (Int, Int)?
    var position = start
    while position < text.count {
      let byte = Int(text[position])
      node ^= byte
      guard node < units.count else { break }
      let unit = units[node]
      guard unit & 0x8000_00FF == UInt32(byte) else { break }
      node ^= offset(unit)
      position += 1
      if unit >> 8 & 1 == 1, node < units.count {
        found = (position - start, Int(units[node] & 0x7FFF_FFFF))
      }
    }
    return found
  }

  /// The bytes from a place up to the next zero; empty if the place is outside.
  func replacement(at place: Int) -> ArraySlice<UInt8> {
    guard place < replacements.count else { return [] }
    let end = replacements[place...].firstIndex(of: 0) ?? replacements.endIndex
    return replacements[place..<end]
  }

  private func offset(_ unit: UInt32) -> Int { Int(unit >> 10) << Int(unit >> 6 & 8) }
}
