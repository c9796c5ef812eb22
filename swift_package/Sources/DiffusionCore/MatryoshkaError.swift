import Foundation

/// The errors of this package, each with the values that caused it.
///
/// `errorDescription` is one sentence for a person.
public enum MatryoshkaError: Error, Sendable, Equatable {
  /// The text is not strict JSON. `offset`: the byte where parsing failed.
  case invalidJSON(offset: Int, reason: String)
  /// The manifest breaks a rule of its schema. `field`: the place, such as `levels.0.side`.
  case invalidManifest(field: String, reason: String)
  /// A file of the bundle differs from the manifest's description of it.
  case damagedBundle(file: String, reason: String)
  /// A safetensors file cannot be read.
  case invalidTensorFile(reason: String)
  /// A SentencePiece model cannot be used.
  case invalidTokenizer(reason: String)
  /// A picture file cannot be read or written.
  case invalidPicture(reason: String)
  /// A request cannot be fulfilled. `name`: the argument at fault.
  case invalidArgument(name: String, reason: String)
  /// The cache has no text features for this caption.
  case missingFeatures(caption: String)
  /// A file operation failed.
  case fileSystem(path: String, reason: String)
  /// The model does not fit into memory. Both values are in bytes.
  case notEnoughMemory(needed: Int, available: Int)
  /// A package could not be loaded or run.
  case packageFailed(package: String, reason: String)
  /// The bundle server broke the protocol or ended.
  case serverFailed(reason: String)
  /// The pipeline is already making a picture; it makes one at a time.
  case busy
  /// The app's own filter refused the prompt.
  case promptRefused(reason: String)
  /// The app's own filter refused the picture.
  case pictureRefused(reason: String)
  /// The run stopped after some steps. `resume` continues from the snapshot to the same picture.
  case interrupted(Snapshot, reason: String)
}

extension MatryoshkaError: LocalizedError {
  /// One sentence for a person.
  public var errorDescription: String? {
    switch self {
    case .invalidJSON(let offset, let reason): "not valid JSON at byte \(offset): \(reason)."
    case .invalidManifest(let field, let reason): "manifest.json: \(field) \(reason)."
    case .damagedBundle(let file, let reason):
      "\(file): \(reason); copy the whole bundle again."
    case .invalidTensorFile(let reason): "tensor file: \(reason)."
    case .invalidTokenizer(let reason): "tokenizer: \(reason)."
    case .invalidPicture(let reason): "picture: \(reason)."
    case .invalidArgument(let name, let reason): "\(name): \(reason)."
    case .missingFeatures(let caption):
      "no text features for the caption \"\(caption.prefix(60))\"; add them with mdm embed."
    case .fileSystem(let path, let reason): "\(path): \(reason)."
    case .notEnoughMemory(let needed, let available):
      "the model needs \(needed >> 20) MB of memory, but only \(available >> 20) MB are available; "
        + "choose a smaller variant of the bundle."
    case .packageFailed(let package, let reason): "package \(package): \(reason)."
    case .serverFailed(let reason): "bundle server: \(reason)."
    case .busy: "another picture is being made; wait for it or end its stream."
    case .promptRefused(let reason): "the prompt was refused: \(reason)."
    case .pictureRefused(let reason): "the picture was refused: \(reason)."
    case .interrupted(let snapshot, let reason):
      "interrupted after \(snapshot.stepsDone) steps (\(reason)); resume from the snapshot."
    }
  }
}
