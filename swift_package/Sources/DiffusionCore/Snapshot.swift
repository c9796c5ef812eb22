/// A request for one picture.
public struct PictureRequest: Sendable, Equatable, Codable {
  /// The prompt.
  public var prompt: String
  /// The negative prompt; if empty, guidance is relative to the empty prompt.
  public var negativePrompt: String
  /// The same seed gives the same picture.
  public var seed: UInt32
  /// The sampler and its parameters.
  public var sampler: SamplerSettings
  /// Side of the highest level to run; nil: all levels. A level of a clip counts with all its frames: 64
  /// stands for 16 frames of 16 pixels, in four rows.
  public var stopAt: Int?
  /// A picture to start from, to keep a part of, or to enlarge; nil: none. It is a square in the size of
  /// the highest level that runs, or of ``level``.
  public var image: Picture?
  /// The share of the steps that are taken, above 0 and up to 1, which begins with noise alone; nil: 0.6, or 1
  /// with a mask. A student begins only at its own starts.
  public var strength: Double?
  /// Of the size of ``image``; what is white in it is made anew, the rest is kept to the byte.
  public var mask: Picture?
  /// The side of ``image`` where it is smaller than the picture to make, which then averages to it.
  public var level: Int?

  /// Creates a request with the defaults of `mdm sample`.
  public init(
    prompt: String, negativePrompt: String = "", seed: UInt32 = 0,
    sampler: SamplerSettings = SamplerSettings(), stopAt: Int? = nil, image: Picture? = nil,
    strength: Double? = nil, mask: Picture? = nil, level: Int? = nil
  ) {
    (self.prompt, self.negativePrompt, self.seed) = (prompt, negativePrompt, seed)
    (self.sampler, self.stopAt) = (sampler, stopAt)
    (self.image, self.strength, self.mask, self.level) = (image, strength, mask, level)
  }
}

/// What to make a clip from: the same as for a picture.
public typealias ClipRequest = PictureRequest

/// The state of a run between two steps. Resuming gives the same picture as an uninterrupted run.
///
/// An encoded snapshot takes a few times the bytes of the pictures. Keep it in memory or in a file.
public struct Snapshot: Sendable, Equatable, Codable {
  /// The digest of the snapshot's bundle.
  public let bundleDigest: String
  /// The request.
  public let request: PictureRequest
  /// Number of steps done.
  public let stepsDone: Int
  /// The noisy picture of every level, highest first.
  public let states: [Tensor]
  /// Number of noise draws so far.
  public let draws: Int
  /// Memory of the solver.
  public let history: Sampler.History?

  package init(
    bundleDigest: String, request: PictureRequest, stepsDone: Int, states: [Tensor], draws: Int,
    history: Sampler.History?
  ) {
    (self.bundleDigest, self.request, self.stepsDone) = (bundleDigest, request, stepsDone)
    (self.states, self.draws, self.history) = (states, draws, history)
  }
}
