import Foundation

/// A SentencePiece unigram model with T5's special ids. Gives the same ids and pieces as
/// `sentencepiece`.
///
/// Source: Kudo 2018 (arXiv:1804.10959). It works on UTF-8 bytes, because Swift's
/// characters would join scalars that SentencePiece keeps apart.
public struct UnigramTokenizer: Sendable {
  /// A piece of the normalized text. Neighbouring unknown pieces are joined into one.
  public struct Token: Sendable, Equatable {
    /// Its id.
    public let id: Int
    /// Its text, with "▁" for white space.
    public let piece: String
  }

  /// Padding.
  public static let padID = 0
  /// End of the text.
  public static let endID = 1
  /// Unknown.
  public static let unknownID = 2

  /// A text as a model reads it.
  public struct Tokens: Sendable, Equatable {
    /// Its ids; the last is always the end token.
    public let ids: [Int]
    /// The end of the text that is beyond the length that the model reads.
    public let ignored: [Token]
  }

  private let map: CharacterMap?
  private let trie: PieceTrie
  private let userTrie: PieceTrie?
  private let scores: [Float]
  private let kinds: [SentencePieceModel.Kind]
  private let unknownScore: Float
  private let maximumScore: Float
  private let addsDummyPrefix: Bool
  private let removesExtraWhitespace: Bool
  private let escapesWhitespace: Bool
  private let nullPrompt: [Int]
  /// The number of pieces.
  public var vocabularySize: Int { scores.count }

  /// Reads the bytes of a `.model` file. Throws ``MatryoshkaError/invalidTokenizer(reason:)``.
  ///
  /// - Parameter nullPrompt: the tokens of the empty text. The model must have a piece for them.
  public init(model bytes: [UInt8], nullPrompt: Manifest.NullPrompt = .end) throws {
    let model = try SentencePieceModel(bytes)
    self.nullPrompt = try UnigramTokenizer.ids(of: nullPrompt, in: model)
    map = try CharacterMap(model.charsmap)
    scores = model.pieces.map(\.score)
    kinds = model.pieces.map(\.kind)
    let searched = model.pieces.indices.filter {
      [.normal, .userDefined, .unused].contains(model.pieces[$0].kind)
    }
    trie = PieceTrie(searched.map { (model.pieces[$0].text, Int32($0)) })
    let user = searched.filter { model.pieces[$0].kind == .userDefined }
    userTrie = user.isEmpty ? nil : PieceTrie(user.map { (model.pieces[$0].text, Int32($0)) })
    let normal = model.pieces.filter { $0.kind == .normal }.map(\.score)
    unknownScore = (normal.min() ?? 0) - 10
    maximumScore = max(normal.max() ?? 0, .leastNormalMagnitude)
    addsDummyPrefix = model.addsDummyPrefix
    removesExtraWhitespace = model.removesExtraWhitespace
    escapesWhitespace = model.escapesWhitespace
  }

  /// Ids and pieces of a text, without the end token.
  public func encode(_ text: String) -> [Token] {
    let normalized = normalize(Array(text.utf8))
    return segments(normalized).map { start, end, id in
      Token(id: id, piece: String(decoding: normalized[start..<end], as: UTF8.self))
    }
  }

  /// Ids of a text, without the end token.
  public func ids(_ text: String) -> [Int] {
    segments(normalize(Array(text.utf8))).map(\.2)
  }

  /// A caption as a model reads it that takes at most `maximum` tokens. The empty text is the null
  /// prompt.
  public func tokens(_ text: String, maximum: Int) -> Tokens {
    let space = max(maximum - 1, 0)
    let all = encode(text)
    guard !all.isEmpty else {  // text may also normalise to nothing, as a zero-width space does
      return Tokens(ids: nullPrompt.prefix(space) + [UnigramTokenizer.endID], ignored: [])
    }
    return Tokens(
      ids: all.prefix(space).map(\.id) + [UnigramTokenizer.endID], ignored: Array(all.dropFirst(space)))
  }

  /// Ids of a null prompt before its end token.
  private static func ids(of nullPrompt: Manifest.NullPrompt, in model: SentencePieceModel) throws -> [Int] {
    guard nullPrompt == .space else { return [] }
    guard let piece = model.pieces.firstIndex(where: { $0.text == spaceSymbol }), piece != unknownID else {
      throw MatryoshkaError.invalidTokenizer(
        reason: "it has no piece for a space, which the model's null prompt is; "
          + "copy the tokenizer that came with the model")
    }
    return [piece]
  }

  // MARK: normalizing

  private static let space = UInt8(ascii: " ")
  private static let spaceSymbol: [UInt8] = Array("▁".utf8)

  private func normalize(_ input: [UInt8]) -> [UInt8] {
    var out: [UInt8] = []
    out.reserveCapacity(input.count * 2 + 3)
    input.withUnsafeBufferPointer { text in
      var position = 0
      if removesExtraWhitespace {
        while position < text.count {
          let (length, piece) = prefix(text, position)
          guard piece.elementsEqual(CollectionOfOne(UnigramTokenizer.space)) else { break }
          position += length
        }
      }
      if position == text.count { return }
      let symbol = escapesWhitespace ? UnigramTokenizer.spaceSymbol : [UnigramTokenizer.space]
      if addsDummyPrefix { out += symbol }
      var afterSpace = removesExtraWhitespace
      while position < text.count {
        let (length, whole) = prefix(text, position)
        var piece = whole
        while afterSpace, piece.first == UnigramTokenizer.space { piece = piece.dropFirst() }
        for byte in piece {
          if byte == UnigramTokenizer.space { out += symbol } else { out.append(byte) }
        }
        if let last = piece.last { afterSpace = last == UnigramTokenizer.space }
        if !removesExtraWhitespace { afterSpace = false }
        position += length
      }
      if removesExtraWhitespace {
        while out.count >= symbol.count, out[(out.count - symbol.count)...].elementsEqual(symbol) {
          out.removeLast(symbol.count)
        }
      }
    }
    return out
  }

  /// The number of bytes to consume next, and their replacement.
  private func prefix(_ text: UnsafeBufferPointer<UInt8>, _ position: Int) -> (Int, ArraySlice<UInt8>) {
    if let length = userMatch(text, position) {
      return (length, ArraySlice(text[position..<position + length]))
    }
    if let map, let (length, value) = map.longestMatch(text, from: position) {
      return (length, map.replacement(at: value))
    }
    let length = characterLength(text, position)
    return (length, ArraySlice(text[position..<position + length]))
  }

  private func userMatch(_ text: UnsafeBufferPointer<UInt8>, _ position: Int) -> Int? {
    guard let userTrie else { return nil }
    var node = PieceTrie.root
    var found: Int?
    var end = position
    while end < text.count, let child = userTrie.child(node, text[end]) {
      node = child
      end += 1
      if userTrie.piece(node) >= 0 { found = end - position }
    }
    return found
  }

  /// Length in bytes of the character that starts here, by its first byte, within the rest of the text.
  @inline(__always)
  private func characterLength(_ text: UnsafeBufferPointer<UInt8>, _ position: Int) -> Int {
    let length = text[position] < 0xC0 ? 1 : text[position] < 0xE0 ? 2 : text[position] < 0xF0 ? 3 : 4
    return min(length, text.count - position)
  }

  // MARK: the best segmentation

  private struct Best {
    var score: Float = 0
    var start: Int32 = -1
    var id: Int32 = -1
  }

  /// Start, end and id of the pieces of the best segmentation (Viterbi).
  private func segments(_ normalized: [UInt8]) -> [(Int, Int, Int)] {
    var out: [(Int, Int, Int)] = []
    guard !normalized.isEmpty else { return out }
    normalized.withUnsafeBufferPointer { text in
      withUnsafeTemporaryAllocation(of: Best.self, capacity: text.count + 1) { best in
        best.initialize(repeating: Best())
        var start = 0
        while start < text.count {
          let length = characterLength(text, start)
          extend(best, text, start, length)
          start += length
        }
        var end = text.count
        while end > 0 {
          let (start, id) = (Int(best[end].start), Int(best[end].id))
          // Neighbouring unknown pieces are joined.
          if id == UnigramTokenizer.unknownID, let next = out.last, next.2 == id {
            out[out.count - 1].0 = start
          } else {
            out.append((start, end, id))
          }
          end = start
        }
      }
    }
    out.reverse()
    return out
  }

  /// Tries every piece that starts here, and the unknown piece if none covers the character itself.
  @inline(__always)
  private func extend(
    _ best: UnsafeMutableBufferPointer<Best>, _ text: UnsafeBufferPointer<UInt8>, _ start: Int,
    _ length: Int
  ) {
    let scoreHere = best[start].score
    var isKnown = false
    var node = PieceTrie.root
    var end = start
    while end < text.count, let child = trie.child(node, text[end]) {
      node = child
      end += 1
      let id = Int(trie.piece(node))
      guard id >= 0, kinds[id] != .unused else { continue }
      let score =
        kinds[id] == .userDefined ? Float(Double(Float(end - start) * maximumScore) - 0.1) : scores[id]
      let candidate = score + scoreHere
      if best[end].start < 0 || candidate > best[end].score {
        best[end] = Best(score: candidate, start: Int32(start), id: Int32(id))
      }
      if end - start == length { isKnown = true }
    }
    if !isKnown {
      let candidate = unknownScore + scoreHere
      if best[start + length].start < 0 || candidate > best[start + length].score {
        best[start + length] = Best(
          score: candidate, start: Int32(start), id: Int32(UnigramTokenizer.unknownID))
      }
    }
  }
}
