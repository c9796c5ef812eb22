/// The parts of a SentencePiece `.model` file (sentencepiece_model.proto) that unigram models need.
struct SentencePieceModel {
  enum Kind: UInt64 {
    case normal = 1
    case unknown, control, userDefined, unused, byte
  }

  struct Piece {
    var text: [UInt8] = []
    var score: Float = 0
    var kind = Kind.normal
  }

  private(set) var pieces: [Piece] = []
  private(set) var charsmap: ArraySlice<UInt8> = []
  private(set) var addsDummyPrefix = true
  private(set) var removesExtraWhitespace = true
  private(set) var escapesWhitespace = true
  private var padPiece = Array("<pad>".utf8)
  private var endPiece = Array("</s>".utf8)

  static let maximumBytes = 16 << 20
  private static let maximumPieces = 1 << 20

  /// Throws ``MatryoshkaError/invalidTokenizer(reason:)`` for other kinds of model, and for special
  /// ids other than pad 0, eos 1, unk 2.
  init(_ bytes: [UInt8]) throws {
    guard bytes.count <= SentencePieceModel.maximumBytes else {
      throw refuse("it has \(bytes.count) bytes, expected at most 16 MiB")
    }
    guard !GitPointer.begins(bytes) else { throw refuse("it \(GitPointer.reason)") }
    var message = ProtobufReader(bytes[...])
    while let (field, value) = try message.next() {
      guard case .bytes(let content) = value else { continue }
      switch field {
      case 1:
        guard pieces.count < SentencePieceModel.maximumPieces else {
          throw refuse("it has too many pieces")
        }
        pieces.append(try piece(content))
      case 2: try readTraining(content)
      case 3: try readNormalizer(content)
      default: continue
      }
    }
    try check()
  }

  private func refuse(_ reason: String) -> MatryoshkaError { .invalidTokenizer(reason: reason) }

  private func piece(_ bytes: ArraySlice<UInt8>) throws -> Piece {
    var piece = Piece()
    var message = ProtobufReader(bytes)
    while let field = try message.next() {
      switch field {
      case (1, .bytes(let text)): piece.text = Array(text)
      case (2, .fixed32(let bits)): piece.score = Float(bitPattern: bits)
      case (3, .varint(let number)):
        guard let kind = Kind(rawValue: number) else { throw refuse("a piece has an unknown kind") }
        piece.kind = kind
      default: continue
      }
    }
    guard !piece.text.isEmpty, piece.text.count <= 4096, piece.score.isFinite else {
      throw refuse("a piece is empty or has no score")
    }
    return piece
  }

  private mutating func readTraining(_ bytes: ArraySlice<UInt8>) throws {
    var message = ProtobufReader(bytes)
    while let field = try message.next() {
      switch field {
      case (3, .varint(let kind)) where kind != 1: throw refuse("only unigram models are supported")
      case (24, .varint(let suffix)) where suffix != 0:
        throw refuse("white space as a suffix is not supported")
      case (35, .varint(let fallback)) where fallback != 0:
        throw refuse("byte fallback is not supported")
      case (47, .bytes(let text)): endPiece = Array(text)
      case (48, .bytes(let text)): padPiece = Array(text)
      default: continue
      }
    }
  }

  private mutating func readNormalizer(_ bytes: ArraySlice<UInt8>) throws {
    var message = ProtobufReader(bytes)
    while let field = try message.next() {
      switch field {
      case (2, .bytes(let map)): charsmap = map
      case (3, .varint(let flag)): addsDummyPrefix = flag != 0
      case (4, .varint(let flag)): removesExtraWhitespace = flag != 0
      case (5, .varint(let flag)): escapesWhitespace = flag != 0
      default: continue
      }
    }
  }

  private func check() throws {
    guard pieces.count >= 3, pieces[0].kind == .control, pieces[0].text == padPiece,
      pieces[1].kind == .control, pieces[1].text == endPiece, pieces[2].kind == .unknown
    else { throw refuse("expected a model with pad 0, eos 1, unk 2, as in T5") }
    guard pieces.count(where: { $0.kind == .unknown }) == 1 else {
      throw refuse("the unknown piece is defined twice")
    }
    let plain: Set<Kind> = [.normal, .userDefined, .unused]
    for group in [pieces.filter { plain.contains($0.kind) }, pieces.filter { !plain.contains($0.kind) }] {
      guard Set(group.map(\.text)).count == group.count else { throw refuse("a piece is defined twice") }
    }
    guard pieces.contains(where: { $0.kind == .normal }) else { throw refuse("it has no pieces") }
  }
}
