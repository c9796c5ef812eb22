/// A bundle's description of itself: `manifest.json`, checked against `manifest.schema.json`.
public struct Manifest: Sendable, Equatable {
  /// How a network is cut into packages.
  public enum Layout: String, CaseIterable, Sendable {
    /// One package for everything.
    case monolith
    /// One package for the innermost level, two for each around it.
    case nested
    /// One package with a function per size.
    case multifunction
  }

  /// The quantity that the network predicts.
  public enum Prediction: String, CaseIterable, Sendable, Codable {
    /// The noise in x_t.
    case eps
    /// alpha eps - sigma x0.
    case v
  }

  /// How clean estimates are kept within the range of pictures.
  public enum Threshold: String, CaseIterable, Sendable, Codable {
    /// Unchanged.
    case none
    /// Clipped to [-1, 1].
    case clip
    /// Divided by the 0.995 quantile of |x0|, at most 100.
    case dynamic
    /// Divided by the 0.95 quantile of |x0|, at most 1.5.
    case dynamicIf = "dynamic_if"
  }

  /// How the guidance weight reaches the network.
  public enum Guidance: String, CaseIterable, Sendable {
    /// Two evaluations per step.
    case cfg
    /// An input of the network.
    case embedded
    /// There is no guidance.
    case none
  }

  /// How often a package runs.
  public enum Phase: String, CaseIterable, Sendable {
    /// Once per text.
    case text
    /// Once per prompt.
    case prompt
    /// Once per step.
    case step
  }

  /// Number type of a feature.
  public enum ElementType: String, CaseIterable, Sendable {
    /// Half precision.
    case fp16
    /// Single precision.
    case fp32
    /// Whole numbers.
    case int32
  }

  /// Where a package should run, in Core ML's terms. Of Core AI, a package prefers the unit that is named.
  public enum ComputeUnits: String, CaseIterable, Sendable {
    /// The CPU and the GPU.
    case cpuAndGPU
    /// The CPU and the Neural Engine.
    case cpuAndNeuralEngine
    /// The CPU alone.
    case cpuOnly
    /// The framework chooses.
    case all
  }

  /// The framework that runs the packages.
  public enum Format: String, CaseIterable, Sendable {
    /// Core ML: packages end in `.mlpackage`.
    case coreml
    /// Core AI, since iOS 27 and macOS 27: packages end in `.aimodel`.
    case coreai

    /// How the path of a package ends.
    package var suffix: String {
      switch self {
      case .coreml: ".mlpackage"
      case .coreai: ".aimodel"
      }
    }
  }

  /// How much of the padding after a caption a network sees that does not mask it.
  public enum Padding: String, CaseIterable, Sendable {
    /// All of it, up to ``Text/maxTokens``.
    case maxTokens = "max_tokens"
    /// Up to the longest caption of the same picture: its prompt, or its negative prompt if it is guided.
    case longest
  }

  /// The tokens of the empty caption.
  public enum NullPrompt: String, CaseIterable, Sendable {
    /// The end token alone.
    case end
    /// A space and the end token.
    case space
  }

  /// An input or output of a package.
  public struct Feature: Sendable, Equatable {
    /// A name means the same tensor in all packages.
    public let name: String
    /// Its number type.
    public let dtype: ElementType
    /// Its fixed shape.
    public let shape: [Int]
  }

  /// One package.
  public struct Package: Sendable, Equatable {
    /// Unique in the bundle.
    public let name: String
    /// Relative to the bundle.
    public let path: String
    /// How often it runs.
    public let phase: Phase
    /// The side of its level. Skipped if sampling stops at a smaller side; nil: always runs.
    public let side: Int?
    /// Bits per weight; 16 if the weights are not compressed.
    public let weightBits: Int
    /// Where it should run.
    public let compute: ComputeUnits
    /// The size of the package on disk.
    public let bytes: Int
    /// The peak memory of its values, without the weights.
    public let activationBytes: Int
    /// Its inputs.
    public let inputs: [Feature]
    /// Its outputs.
    public let outputs: [Feature]
  }

  /// One level of the nest.
  public struct Level: Sendable, Equatable {
    /// Width and height of its picture, in pixels. The frames of a clip lie in it, row by row.
    public let side: Int
    /// Name of the feature that holds the noisy picture.
    public let image: String
    /// Name of the feature that holds the level's row of the time table plus the pooled text.
    public let temb: String
    /// Name of the feature that holds the prediction.
    public let prediction: String
    /// Name of the feature that the level above adds, zero if sampling stops here; nil: no such input.
    public let features: String?
    /// Name of its noise table.
    public let alphaBar: String
    /// Name of its table of time embeddings.
    public let time: String
    /// Name of a student's table of targets, with a row per entry of ``Student/targets``.
    public let targetTime: String?
    /// Name of a student's table of guidance weights, with a row per entry of ``Student/weights``.
    public let guidance: String?
    /// Factor that turns a sampled x0 into a picture in [-1, 1].
    public let imageScale: Double
  }

  /// The jumps of a distilled model. Each takes one evaluation, with guidance as an input.
  public struct Student: Sendable, Equatable {
    /// Table indices that it can jump from, noisiest first.
    public let starts: [Int]
    /// Table indices that it can jump to.
    public let targets: [Int]
    /// Guidance weights that it accepts; empty if it takes none.
    public let weights: [Double]

    /// Allowed numbers of steps: those that divide the starts evenly.
    public var steps: [Int] { (1...max(starts.count, 1)).filter { starts.count % $0 == 0 } }
  }

  /// How prompts become features.
  public struct Text: Sendable, Equatable {
    /// The length of every text, in tokens.
    public let maxTokens: Int
    /// Features per token.
    public let width: Int
    /// Whether captions are lower-cased.
    public let lowercase: Bool
    /// Name of the encoder's package; nil if features come from a cache.
    public let encoder: String?
    /// Path of the tokenizer, relative to the bundle.
    public let tokenizer: String?
    /// Origin of the encoder.
    public let source: String?
    /// SHA-256 of the tokenizer, in hexadecimal.
    public let tokenizerSHA256: String?
    /// The padding that the network sees.
    public let padding: Padding
    /// The tokens of the empty caption, as a prompt and as a negative prompt.
    public let nullPrompt: NullPrompt
  }

  /// The clips of a model. The frames of a level are tiled row by row, and fill its ``Level/side``.
  public struct Video: Sendable, Equatable {
    /// Number of frames of each level, highest resolution first; each is a square number.
    public let frames: [Int]
    /// Frames per second.
    public let fps: Int
    /// The frame that an innermost level of one frame shows.
    public let keyFrame: Int
  }

  /// A size that the packages take besides that of the levels.
  public struct Size: Sendable, Equatable {
    /// Name of its functions in the packages.
    public let name: String
    /// Width of level 0, in pixels.
    public let width: Int
    /// Height of level 0, in pixels.
    public let height: Int
  }

  /// An adapter whose functions the packages have.
  public struct Adapter: Sendable, Equatable {
    /// Name of its functions in the packages.
    public let name: String
    /// SHA-256 of its weights, in hexadecimal.
    public let sha256: String
  }

  /// The sampler that the bundle proposes.
  public struct Sampler: Sendable, Equatable {
    /// The kind of sampler.
    public let kind: SamplerKind
    /// Proposed number of steps.
    public let steps: Int
    /// Allowed numbers of steps.
    public let allowedSteps: ClosedRange<Int>
  }

  /// Predicted peak memory per memory policy, in bytes.
  public struct PeakMemory: Sendable, Equatable {
    /// With all packages loaded.
    public let resident: Int
    /// With the packages of one phase loaded at a time.
    public let staged: Int
    /// With one package loaded at a time.
    public let minimal: Int
  }

  /// A file of the bundle.
  public struct File: Sendable, Equatable {
    /// Relative to the bundle, with forward slashes.
    public let path: String
    /// Size in bytes.
    public let size: Int
    /// SHA-256 in hexadecimal.
    public let sha256: String
  }

  /// The golden record, and the inputs it was made with.
  public struct Golden: Sendable, Equatable {
    /// Path of the record.
    public let path: String
    /// Its prompts.
    public let prompts: [String]
    /// Table indices of the recorded predictions.
    public let times: [Int]
  }

  /// The origin and licence of the model.
  public struct Provenance: Sendable, Equatable {
    /// The licence, as its publisher names it.
    public let license: String?
    /// The source of the model.
    public let source: String?
    /// The model it was made from.
    public let baseModel: String?
    /// Anything else.
    public let notes: String?
  }

  /// SHA-256 of the manifest without this field, in hexadecimal.
  public let digest: String
  /// How the network is cut into packages.
  public let layout: Layout
  /// Name of the compression.
  public let variant: String
  /// Minimum operating system: iOS17, iOS18, iOS26 or, for Core AI, iOS27.
  public let target: String
  /// The levels, highest resolution first.
  public let levels: [Level]
  /// Length of the noise tables, minus one.
  public let numSteps: Int
  /// Name of the unshifted noise table.
  public let alphaBar: String
  /// Path of the tables.
  public let tables: String
  /// Path of the model's configuration.
  public let config: String
  /// The quantity that the network predicts.
  public let prediction: Prediction
  /// The thresholding that the model was made with.
  public let threshold: Threshold
  /// How the guidance weight reaches the network.
  public let guidance: Guidance
  /// The proposed sampler.
  public let sampler: Sampler
  /// The jumps of a distilled model; nil for other models.
  public let student: Student?
  /// How prompts become features; nil if the model takes no text.
  public let text: Text?
  /// The packages, in the order in which they run.
  public let packages: [Package]
  /// Predicted peak memory.
  public let peakMemory: PeakMemory
  /// The golden record.
  public let golden: Golden
  /// Origin and licence of the model.
  public let provenance: Provenance
  /// Versions of the software that made the bundle.
  public let versions: [String: String]
  /// Time of creation, if recorded.
  public let created: String?
  /// All files except the manifest.
  public let files: [File]
  /// The framework that runs the packages.
  public let format: Format
  /// The clips of a model that makes some; nil: it makes pictures.
  public let video: Video?
  /// Further sizes; empty if there are none. This version cannot run them.
  public let sizes: [Size]
  /// Adapters; empty if there are none. This version cannot run them.
  public let adapters: [Adapter]
}
