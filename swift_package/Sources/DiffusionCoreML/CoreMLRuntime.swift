#if canImport(CoreML) || COREML_SHIM
  import DiffusionCore
  import Foundation

  #if COREML_SHIM
    import CoreMLShim
  #elseif canImport(CoreML)
    import CoreML
  #endif

  /// Runs the packages of a bundle with Core ML. Checked against declarations only; not run on a Mac.
  public actor CoreMLRuntime: PackageRuntime {
    /// Opens a compiled model.
    public typealias Open = @Sendable (URL, MLModelConfiguration) throws -> MLModel

    private let models: CompiledModels
    private let computeUnits: Manifest.ComputeUnits?
    private let open: Open
    private var loaded: [String: MLModel] = [:]
    private var contexts: [Int: [String: MLMultiArray]] = [:]
    /// The arrays that hold what the host gave, to be filled again. What packages put out is apart from
    /// them, because it may belong to a model.
    private var given: [Int: [String: MLMultiArray]] = [:]
    private let executor = BlockingExecutor(label: "DiffusionCoreML")

    /// The digest of the bundle whose models it opens.
    public nonisolated var bundleDigest: String? { models.bundle.manifest.digest }

    /// The actor's own thread, so that long predictions do not delay others.
    public nonisolated var unownedExecutor: UnownedSerialExecutor {
      executor.asUnownedSerialExecutor()
    }

    /// - Parameters:
    ///   - computeUnits: for all packages; nil: the manifest's proposal for each. Measure the difference.
    ///   - open: opens a compiled model; `MLModel(contentsOf:configuration:)` by default.
    public init(
      models: CompiledModels, computeUnits: Manifest.ComputeUnits? = nil,
      open: @escaping Open = { try MLModel(contentsOf: $0, configuration: $1) }
    ) {
      (self.models, self.computeUnits, self.open) = (models, computeUnits, open)
    }

    /// Compiles the package if necessary, and loads it.
    public func load(_ package: Manifest.Package) async throws {
      if loaded[package.name] != nil { return }
      let url = try await models.url(of: package)
      // Another caller may have loaded it during the wait.
      if loaded[package.name] != nil { return }
      let configuration = MLModelConfiguration(computeUnits ?? package.compute)
      configuration.functionName = models.bundle.manifest.function(of: package)
      do {
        loaded[package.name] = try open(url, configuration)
      } catch {
        throw MatryoshkaError.packageFailed(
          package: package.name, reason: "cannot be loaded (\(error.cause))")
      }
    }

    /// Releases a package. Values in the contexts stay.
    public func unload(_ package: Manifest.Package) { loaded[package.name] = nil }

    /// Runs a package. The buffers of its last outputs are offered for the new outputs.
    public func run(
      _ package: Manifest.Package, context: Int, giving values: [String: Tensor]
    ) throws {
      guard let model = loaded[package.name] else {
        throw MatryoshkaError.packageFailed(package: package.name, reason: "is not loaded")
      }
      var known = contexts[context, default: [:]]
      for input in package.inputs {
        if let tensor = values[input.name] {
          let array = try MultiArrays.array(
            tensor, as: input, reusing: given[context]?[input.name])
          given[context, default: [:]][input.name] = array
          known[input.name] = array
        }
      }
      contexts[context] = try pooled { try outputs(of: package, model, known) }
    }

    /// A value of a context in single precision.
    public func value(_ name: String, context: Int) throws -> Tensor {
      guard let array = contexts[context]?[name] else {
        throw MatryoshkaError.packageFailed(package: name, reason: "was not computed")
      }
      return try MultiArrays.tensor(array, named: name)
    }

    /// Releases all models and values.
    public func release() { (loaded, contexts, given) = ([:], [:], [:]) }

    /// The values that are known after one prediction.
    private func outputs(
      of package: Manifest.Package, _ model: MLModel, _ before: [String: MLMultiArray]
    ) throws -> [String: MLMultiArray] {
      var known = before
      let outputs = try predict(package, model, known)
      for output in package.outputs {
        guard let array = outputs.featureValue(for: output.name)?.multiArrayValue,
          array.shape.map(\.intValue) == output.shape
        else {
          throw MatryoshkaError.packageFailed(
            package: package.name, reason: "did not put out \(output.name) as declared in the manifest")
        }
        known[output.name] = array
      }
      return known
    }

    private func predict(
      _ package: Manifest.Package, _ model: MLModel, _ known: [String: MLMultiArray]
    ) throws -> any MLFeatureProvider {
      var inputs: [String: Any] = [:]
      for input in package.inputs {
        guard let array = known[input.name] else {
          throw MatryoshkaError.packageFailed(package: package.name, reason: "needs \(input.name), which has no value yet")
        }
        inputs[input.name] = MLFeatureValue(multiArray: array)
      }
      let options = MLPredictionOptions()
      for output in package.outputs where inputs[output.name] == nil {
        options.outputBackings[output.name] = known[output.name]
      }
      do {
        let provider = try MLDictionaryFeatureProvider(dictionary: inputs)
        return try model.prediction(from: provider, options: options)
      } catch {
        throw MatryoshkaError.packageFailed(
          package: package.name, reason: error.cause)
      }
    }
  }

  extension MLModelConfiguration {
    /// A configuration for packages of a bundle. Their shapes never change, and they run far more often
    /// than they are loaded.
    package convenience init(_ units: Manifest.ComputeUnits) {
      self.init()
      computeUnits =
        switch units {
        case .cpuAndGPU: .cpuAndGPU
        case .cpuAndNeuralEngine: .cpuAndNeuralEngine
        case .cpuOnly: .cpuOnly
        case .all: .all
        }
      optimizationHints.reshapeFrequency = .infrequent
      optimizationHints.specializationStrategy = .fastPrediction
    }
  }
#endif
