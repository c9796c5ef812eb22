/// What makes a picture or clip again: `mdm sample --like FILE --model BUNDLE` reads it from a PNG file.
public struct Recipe: Sendable, Equatable {
  /// What computed the packages, as `mdm sample` names it.
  public enum Backend: String, Sendable {
    /// Core ML.
    case coreml
    /// Core AI.
    case coreai
    /// `mdm serve-bundle`, for bundles of Core ML.
    case reference
  }

  private let request: PictureRequest
  private let manifest: Manifest
  private let backend: Backend
  private let precision: String

  /// - Parameters:
  ///   - request: that made the picture or clip.
  ///   - bundle: that made it.
  ///   - backend: nil: the framework that the bundle is for.
  ///   - precision: `fp16`, which Core ML and Core AI compute in, or `fp32`.
  public init(
    of request: PictureRequest, bundle: BundleFolder, backend: Backend? = nil, precision: String = "fp16"
  ) {
    (self.request, self.precision, manifest) = (request, precision, bundle.manifest)
    self.backend = backend ?? (bundle.manifest.format == .coreml ? .coreml : .coreai)
  }

  /// The text of a PNG file and its key, for ``Picture/png(text:)`` and ``Clip/apng(text:)``.
  public var text: (key: String, value: String) { ("mdm", json.canonical) }

  /// As `Recipe` in `mdm_apple/sampling/pictures.py` reads it.
  private var json: JSON {
    let sampler = request.sampler
    var members = [
      JSON.Member("prompt", .string(request.prompt)),
      JSON.Member("negative", .string(request.negativePrompt)),
      JSON.Member("seed", .number(request.seed.description)),
      JSON.Member("sampler", .string(sampler.kind.rawValue)),
      JSON.Member("steps", number(sampler.steps)),
      JSON.Member("eta", .number(sampler.eta.description)),
      JSON.Member("guidance", .number(sampler.guidanceScale.description)),
      JSON.Member("threshold", sampler.threshold.map { .string($0.rawValue) } ?? .null),
      JSON.Member("grid", .string(sampler.grid.rawValue)),
      JSON.Member("stop_at", number(request.stopAt)),
      JSON.Member("model", .string(manifest.digest)),
      JSON.Member("backend", .string(backend.rawValue)),
      JSON.Member("precision", .string(precision)),
      JSON.Member("version", .string(manifest.versions["mdm_apple"] ?? "")),
      JSON.Member("quantize", .null),
    ]
    if let video = manifest.video, manifest.makesClips(upTo: request.stopAt) {
      let level = manifest.levels.firstIndex { $0.side == request.stopAt } ?? 0
      members.append(JSON.Member("frames", number(video.frames[level])))
      members.append(JSON.Member("fps", number(video.fps)))
    }
    let first = manifest.levels.firstIndex { $0.side == request.stopAt } ?? 0
    let levels = manifest.levels[first...]
    let given = try? GivenPicture(
      request, sides: levels.map(\.side), signals: levels.map(\.imageScale))
    members += given?.recipe.map { JSON.Member($0.name, $0.value) } ?? []
    return .object(members)
  }

  private func number(_ value: Int?) -> JSON { value.map { .number($0.description) } ?? .null }
}
