#if COREAI_SHIM
  import CoreAIShim
  import DiffusionCore
  import DiffusionCoreAI
  import Foundation
  import Synchronization

  /// Packages that compute: every number of an output is the sum of the means of all inputs, plus a slope
  /// that shows a number in the wrong place.
  final class FakePackages: Sendable {
    struct Refused: LocalizedError {
      let options: SpecializationOptions
      var errorDescription: String? { "No room on the unit." }
    }

    /// How many numbers lie after each row.
    private let padding: Int
    private let interleaves: Bool
    private let packages: [Manifest.Package]
    /// Options that no package can be specialized for, or whose functions cannot be loaded.
    private let refused: Set<SpecializationOptions>, unloadable: Set<SpecializationOptions>
    /// What a unit adds to every number by mistake.
    private let error: @Sendable (SpecializationOptions) -> Float
    /// Where the arrays lie that functions were given, by name, in order.
    let addresses = Mutex<[String: [Int]]>([:])

    init(
      of bundle: BundleFolder, padding: Int = 0, interleaves: Bool = false,
      refusing refused: Set<SpecializationOptions> = [],
      unloadable: Set<SpecializationOptions> = [],
      error: @escaping @Sendable (SpecializationOptions) -> Float = { _ in 0 }
    ) {
      (packages, self.padding, self.interleaves) = (bundle.manifest.packages, padding, interleaves)
      (self.refused, self.unloadable, self.error) = (refused, unloadable, error)
    }

    /// Named as their functions are: `main`, or by the entry if several share a package.
    func functions(_ url: URL, _ options: SpecializationOptions) throws -> [String: Program] {
      if refused.contains(options) { throw Refused(options: options) }
      let inside = packages.filter { $0.path == url.lastPathComponent }
      return Dictionary(
        uniqueKeysWithValues: inside.map {
          (inside.count > 1 ? $0.name : "main", program($0, options))
        })
    }

    func cache() -> AIModelCache { AIModelCache { try self.functions($0, $1) } }

    func program(_ package: Manifest.Package, _ options: SpecializationOptions) -> Program {
      let wrong = error(options)
      return Program(
        inputs: described(package.inputs), outputs: described(package.outputs),
        loadFailure: unloadable.contains(options) ? Refused(options: options) : nil
      ) { inputs in
        self.addresses.withLock { seen in
          for (name, array) in inputs { seen[name, default: []].append(array.address) }
        }
        let mean = try inputs.keys.sorted().reduce(Float(0)) { sum, name in
          guard let array = inputs[name] else { return sum }
          let values = try NDArrays.tensor(array, named: name).values
          return sum + values.reduce(0, +) / Float(values.count)
        }
        return Dictionary(
          uniqueKeysWithValues: package.outputs.map { output in
            (output.name, FakePackages.numbers(output.shape, mean + wrong))
          })
      }
    }

    /// The numbers of an output.
    static func numbers(_ shape: [Int], _ mean: Float) -> [Float] {
      (0..<shape.reduce(1, *)).map { mean + Float($0 % 7) / 16 }
    }

    func described(_ features: [Manifest.Feature]) -> [String: InferenceValue.Descriptor] {
      let layout = interleaves ? NDArray.InterleaveLayout(dimension: 1, factor: 3) : nil
      return Dictionary(
        uniqueKeysWithValues: features.map {
          let descriptor = NDArrayDescriptor(
            shape: $0.shape, scalarType: NDArrays.type($0.dtype), padding: padding,
            interleaveLayout: layout)
          return ($0.name, .ndArray(descriptor))
        })
    }
  }

  extension AIModelCache {
    /// The options that packages were specialized with, in order.
    var specialized: [SpecializationOptions] {
      events.filter { $0.kind == .specialization }.map(\.options)
    }
  }

  extension SpecializationOptions {
    static let gpu = SpecializationOptions(preferredComputeUnitKind: .gpu)
    static let engine = SpecializationOptions(preferredComputeUnitKind: .neuralEngine)
  }

  extension Manifest.Package {
    /// Inputs of one number each.
    func zeros(_ value: Float = 0) throws -> [String: Tensor] {
      try Dictionary(
        uniqueKeysWithValues: inputs.map {
          let count = $0.shape.reduce(1, *)
          return ($0.name, try Tensor(shape: $0.shape, values: Array(repeating: value, count: count)))
        })
    }
  }
#endif
