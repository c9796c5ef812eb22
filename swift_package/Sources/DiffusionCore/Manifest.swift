/// What a bundle says about itself: `manifest.json`, held to the rules of `manifest.schema.json`.
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

  /// What the network answers.
  public enum Prediction: String, CaseIterable, Sendable, Codable {
    /// The noise in x_t.
    case eps
    /// alpha eps - sigma x0.
    case v
  }

  /// How a clean estimate is kept in the range of pictures.
  public enum Threshold: String, CaseIterable, Sendable, Codable {
    /// Not at all.
    case none
    /// Clipped to [-1, 1].
    case clip
    /// Divided by the 0.995 quantile of |x0|, at most 100.
    case dynamic
    /// Divided by the 0.95 quantile of |x0|, at most 1.5.
    case dynamicIf = "dynamic_if"
  }

  /// How a prompt's weight reaches the network.
  public enum Guidance: String, CaseIterable, Sendable {
    /// Two evaluations per step.
    case cfg
    /// An input of the network.
    case embedded
    /// None.
    case none
  }

  /// Text to noise: how often a package runs.
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

  /// Where a package should run; Core ML's names.
  public enum ComputeUnits: String, CaseIterable, Sendable {
    /// Processor and graphics.
    case cpuAndGPU
    /// Processor and Neural Engine.
    case cpuAndNeuralEngine
    /// Processor.
    case cpuOnly
    /// Core ML chooses.
    case all
  }

  /// An input or output of a package.
  public struct Feature: Sendable, Equatable {
    /// The same name means the same tensor in all packages.
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
    /// The level it belongs to; left out where sampling stops at a smaller one. nil: always runs.
    public let side: Int?
    /// 16 where its weights are not compressed.
    public let weightBits: Int
    /// Where it should run.
    public let compute: ComputeUnits
    /// Of the package on disk.
    public let bytes: Int
    /// The most that its values occupy at once, weights apart.
    public let activationBytes: Int
    /// What it takes.
    public let inputs: [Feature]
    /// What it puts out.
    public let outputs: [Feature]
  }

  /// One level of the nest.
  public struct Level: Sendable, Equatable {
    /// Pixels of a side.
    public let side: Int
    /// Feature: the noisy picture.
    public let image: String
    /// Feature: its row of the time table, plus the pooled text.
    public let temb: String
    /// Feature: what the network answers.
    public let prediction: String
    /// Feature: what the level above adds; zero where sampling stops here. nil: no such input.
    public let features: String?
    /// Table of its noise.
    public let alphaBar: String
    /// Table of its time embeddings.
    public let time: String
    /// Table of a student's targets, a row per entry of ``Student/targets``.
    public let targetTime: String?
    /// Table of a student's guidance weights, a row per entry of ``Student/weights``.
    public let guidance: String?
    /// A sampled x0 times this is a picture in [-1, 1].
    public let imageScale: Double
  }

  /// How a distilled model jumps: one evaluation each, guidance being an input.
  public struct Student: Sendable, Equatable {
    /// Table indices that it jumps from, noisiest first.
    public let starts: [Int]
    /// Table indices that it may be told to jump to.
    public let targets: [Int]
    /// Guidance weights that it takes; empty: none.
    public let weights: [Double]

    /// Numbers of steps that divide its starts evenly.
    public var steps: [Int] { (1...max(starts.count, 1)).filter { starts.count % $0 == 0 } }
  }

  /// How prompts become features.
  public struct Text: Sendable, Equatable {
    /// The only source of the text length.
    public let maxTokens: Int
    /// Numbers per token.
    public let width: Int
    /// Whether captions are lower-cased.
    public let lowercase: Bool
    /// Package of the encoder; nil: features come from a cache.
    public let encoder: String?
    /// File of the tokenizer, relative to the bundle.
    public let tokenizer: String?
    /// Where the encoder came from.
    public let source: String?
    /// Hex SHA-256 of the tokenizer.
    public let tokenizerSHA256: String?
  }

  /// The sampler that the bundle proposes.
  public struct Sampler: Sendable, Equatable {
    /// Which sampler.
    public let kind: SamplerKind
    /// Proposed evaluations.
    public let steps: Int
    /// Allowed evaluations.
    public let allowedSteps: ClosedRange<Int>
  }

  /// Predicted bytes per memory policy.
  public struct PeakMemory: Sendable, Equatable {
    /// All packages loaded.
    public let resident: Int
    /// Those of one phase at a time.
    public let staged: Int
    /// One at a time.
    public let minimal: Int
  }

  /// A file of the bundle.
  public struct File: Sendable, Equatable {
    /// Relative to the bundle, with forward slashes.
    public let path: String
    /// Bytes.
    public let size: Int
    /// Hex.
    public let sha256: String
  }

  /// What the golden record was made with.
  public struct Golden: Sendable, Equatable {
    /// Its file.
    public let path: String
    /// Its prompts.
    public let prompts: [String]
    /// Table indices at which predictions were recorded.
    public let times: [Int]
  }

  /// Whose work the model is, and what may be done with it.
  public struct Provenance: Sendable, Equatable {
    /// The licence as its publisher names it.
    public let license: String?
    /// Where it came from.
    public let source: String?
    /// What it was made from.
    public let baseModel: String?
    /// Anything else.
    public let notes: String?
  }

  /// Hex SHA-256 of the manifest without this field.
  public let digest: String
  /// How the network is cut.
  public let layout: Layout
  /// Name of the compression.
  public let variant: String
  /// Least operating system: iOS17, iOS18 or iOS26.
  public let target: String
  /// Highest resolution first.
  public let levels: [Level]
  /// Length of the noise tables, less one.
  public let numSteps: Int
  /// Table of the unshifted noise.
  public let alphaBar: String
  /// File of the tables.
  public let tables: String
  /// File of the model's configuration.
  public let config: String
  /// What the network answers.
  public let prediction: Prediction
  /// What the model was made with.
  public let threshold: Threshold
  /// How a prompt's weight reaches the network.
  public let guidance: Guidance
  /// The proposed sampler.
  public let sampler: Sampler
  /// nil: the model was not distilled.
  public let student: Student?
  /// nil: the model takes no text.
  public let text: Text?
  /// In the order in which they run.
  public let packages: [Package]
  /// Predicted bytes.
  public let peakMemory: PeakMemory
  /// The golden record.
  public let golden: Golden
  /// Whose work it is.
  public let provenance: Provenance
  /// Versions of what made the bundle.
  public let versions: [String: String]
  /// When, if that was recorded.
  public let created: String?
  /// All files but the manifest.
  public let files: [File]
}
