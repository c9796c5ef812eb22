#if canImport(CoreAI) || COREAI_SHIM
  import DiffusionCore

  #if COREAI_SHIM
    import CoreAIShim
  #elseif canImport(CoreAI)
    import CoreAI
  #endif

  /// A function of a package, whose inputs and outputs are those that the manifest declares.
  @available(macOS 27, iOS 27, tvOS 27, watchOS 27, visionOS 27, *)
  struct LoadedFunction: Sendable {
    private let function: InferenceFunction
    private let inputs: [String: NDArrayDescriptor]
    private let outputs: [String: NDArrayDescriptor]

    /// Loads the weights. Throws ``MatryoshkaError`` if the package is not what the manifest says, and
    /// what Core AI throws otherwise.
    init(_ package: Manifest.Package, named name: String, of model: AIModel) throws {
      guard let function = try model.loadFunction(named: name) else {
        throw MatryoshkaError.packageFailed(package: package.name, reason: "has no function \(name); convert the model again")
      }
      let found = function.descriptor
      inputs = try LoadedFunction.described(package, "input", package.inputs, found.inputNames) {
        found.inputDescriptor(of: $0)
      }
      outputs = try LoadedFunction.described(package, "output", package.outputs, found.outputNames) {
        found.outputDescriptor(of: $0)
      }
      self.function = function
    }

    private static func described(
      _ package: Manifest.Package, _ kind: String, _ features: [Manifest.Feature], _ names: [String],
      _ descriptor: (String) -> InferenceValue.Descriptor?
    ) throws -> [String: NDArrayDescriptor] {
      func refuse(_ found: String, _ wanted: String) -> MatryoshkaError {
        .packageFailed(
          package: package.name,
          reason: "\(found), but the manifest lists \(wanted); convert the model again")
      }
      let wanted = features.map(\.name).sorted()
      guard names.sorted() == wanted else {
        let listed = names.sorted().joined(separator: ", ")
        throw refuse(
          listed.isEmpty ? "has no \(kind)s" : "has the \(kind)s \(listed)",
          wanted.joined(separator: ", "))
      }
      var found: [String: NDArrayDescriptor] = [:]
      for feature in features {
        let type = NDArrays.type(feature.dtype)
        let array = "an array of \(type) in the shape \(feature.shape)"
        guard case .ndArray(let own)? = descriptor(feature.name) else {
          throw refuse("has an image as its \(kind) \(feature.name)", array)
        }
        guard own.shape == feature.shape, own.scalarType == type else {
          throw refuse(
            "has an array of \(own.scalarType) in the shape \(own.shape) as its \(kind) \(feature.name)",
            array)
        }
        found[feature.name] = own
      }
      return found
    }

    /// An empty array for an input.
    func array(for input: Manifest.Feature) -> NDArray? { inputs[input.name].map(NDArrays.empty) }

    /// Runs the function once, and returns its outputs by name.
    ///
    /// - Parameter used: arrays to write outputs into. They must be in no other hands, or else they are
    ///   copied first.
    func run(
      _ given: [String: NDArray], reusing used: consuming [String: NDArray]
    ) async throws -> [String: NDArray] {
      var old = consume used
      var places: [(name: String, array: NDArray)] = []
      // An array cannot be read and written at once, so such an output comes in an array of Core AI's.
      for (name, descriptor) in outputs where given[name] == nil {
        places.append((name, old.removeValue(forKey: name) ?? NDArrays.empty(descriptor)))
      }
      return try await run(given, into: consume places, InferenceFunction.MutableViews())
    }

    /// Adds a view of the last place to `views`, and runs the function when there is a view of each. A view
    /// must not outlive its array, so each array lives in a call of its own. `consume` leaves it in no other
    /// hands, or else a view would be of a copy.
    private func run(
      _ given: [String: NDArray], into places: consuming [(name: String, array: NDArray)],
      _ views: consuming InferenceFunction.MutableViews
    ) async throws -> [String: NDArray] {
      var rest = consume places
      guard let name = rest.last?.name else {
        var made = try await function.run(
          inputs: given, states: InferenceFunction.MutableViews(), outputViews: consume views)
        var returned: [String: NDArray] = [:]
        for name in outputs.keys {
          guard let value = made.remove(name), let array = value.ndArray else { continue }
          returned[name] = array
        }
        return returned
      }
      var array = rest.removeLast().array
      var more = views
      more.insert(&array, for: name)
      var made = try await run(given, into: consume rest, consume more)
      if made[name] == nil { made[name] = array }
      return made
    }
  }
#endif
