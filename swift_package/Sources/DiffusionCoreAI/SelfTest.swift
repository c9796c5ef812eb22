#if canImport(CoreAI) || COREAI_SHIM
  import DiffusionCore

  /// What ``CoreAIRuntime/selfTest()`` found: one prediction on this device against the one that torch made
  /// when the bundle was converted.
  public struct SelfTest: Sendable, Equatable {
    /// The prediction on some compute units.
    public struct Attempt: Sendable, Equatable {
      /// The units of all packages; nil: those that the manifest proposes for each.
      public let units: Manifest.ComputeUnits?
      /// Decibels at the worst level; minus infinity if a number is not finite or a package failed.
      public let psnr: Double
      /// What a package said that failed; nil if none did.
      public let failure: String?
    }

    /// In the order in which they were made. The last one passed, and the runtime keeps its units.
    public let attempts: [Attempt]
    /// The decibels to reach.
    public let floor: Double

    /// Whether the packages run on the units that were asked for.
    public var isFirstChoice: Bool { attempts.count == 1 }

    /// A sentence on units that did not pass; nil if the first choice did.
    public var remark: String? {
      guard !isFirstChoice, let last = attempts.last else { return nil }
      let failed = attempts.dropLast().map(\.words).joined(separator: ", ")
      return "The packages run on \(last.name), since \(failed) against the golden record, where "
        + "\(SelfTest.rounded(floor)) dB are needed."
    }

    /// The units to try for all packages, in this order. None is judged by another: the CPU can be wrong
    /// where the GPU is right, and the other way round.
    package static func order(
      from first: Manifest.ComputeUnits?, _ manifest: Manifest
    ) -> [Manifest.ComputeUnits?] {
      let proposed = Set(manifest.packages.map { first ?? $0.compute })
      if proposed == [.cpuOnly] { return [first] }
      return proposed == [.cpuAndGPU] ? [first, .cpuOnly] : [first, .cpuAndGPU, .cpuOnly]
    }

    fileprivate static func rounded(_ decibels: Double) -> String {
      decibels.isFinite ? "\((decibels * 10).rounded() / 10)" : decibels > 0 ? "infinite" : "no"
    }
  }

  extension SelfTest.Attempt {
    fileprivate var name: String { units?.rawValue ?? "the units of the manifest" }

    /// What was reached, such as `cpuAndGPU reached 12.3 dB`.
    package var words: String {
      "\(name) \(failure.map { "failed (\($0))" } ?? "reached \(SelfTest.rounded(psnr)) dB")"
    }
  }
#endif
