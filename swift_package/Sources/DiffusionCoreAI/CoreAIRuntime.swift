#if canImport(CoreAI) || COREAI_SHIM
  import DiffusionCore
  import Foundation

  #if COREAI_SHIM
    import CoreAIShim
  #elseif canImport(CoreAI)
    import CoreAI
  #endif

  /// Runs the packages of a bundle with Core AI. Checked against declarations only; not run on a Mac.
  ///
  /// Core AI specializes a package for the device when it is first loaded, and keeps the result.
  @available(macOS 27, iOS 27, tvOS 27, watchOS 27, visionOS 27, *)
  public actor CoreAIRuntime: PackageRuntime {
    private let bundle: BundleFolder
    /// Of the bundle, without links: Core AI knows what it specialized by path.
    private let place: URL
    private let cache: AIModelCache
    private var units: Manifest.ComputeUnits?
    private var loaded: [String: LoadedFunction] = [:]
    private var contexts: [Int: [String: NDArray]] = [:]
    private let turns = OneAtATime()
    private let executor = BlockingExecutor(label: "DiffusionCoreAI")

    /// What did not go as asked: packages that could not be loaded for the unit that they should prefer.
    public private(set) var remarks: [String] = []

    /// The digest of the bundle whose packages it runs.
    public nonisolated var bundleDigest: String? { bundle.manifest.digest }

    /// The actor's own thread, since loading weights may take seconds.
    public nonisolated var unownedExecutor: UnownedSerialExecutor {
      executor.asUnownedSerialExecutor()
    }

    /// Throws ``MatryoshkaError/invalidArgument(name:reason:)`` for a bundle of Core ML packages.
    ///
    /// Core AI ends the app if it opens a damaged package. ``BundleFolder`` checks the hashes of a bundle
    /// only if it is asked to: do so when the bundle is installed.
    ///
    /// - Parameters:
    ///   - computeUnits: for all packages; nil: the manifest's proposal for each. Measure the difference.
    ///   - cache: where Core AI keeps specialized packages; that of an app group is shared by its apps.
    public init(
      bundle: BundleFolder, computeUnits: Manifest.ComputeUnits? = nil, cache: AIModelCache = .default
    ) throws {
      try bundle.check(isFor: .coreai)
      place = try bundle.url.withoutLinks()
      (self.bundle, units, self.cache) = (bundle, computeUnits, cache)
    }

    /// Specializes all packages, one at a time, which takes a few seconds each on a device that has not
    /// seen them. It can be cancelled between packages and continued later.
    ///
    /// - Parameter progress: receives the number of packages done and the total.
    public func prepare(progress: @Sendable (Int, Int) -> Void = { _, _ in }) async throws {
      let packages = bundle.manifest.packages.onePerFile
      for (index, package) in packages.enumerated() {
        progress(index, packages.count)
        try await turns.run { try await self.specialize(package) }
      }
      progress(packages.count, packages.count)
    }

    /// Loads a package, specialized now if necessary.
    public func load(_ package: Manifest.Package) async throws {
      // Even if it is loaded now, because a call that unloads it may be waiting.
      try await turns.run { try await self.open(package) }
    }

    /// Releases a package, after the calls that came before. Values in the contexts stay.
    public func unload(_ package: Manifest.Package) async {
      await turns.runEvenIfCancelled { await self.forget(package) }
    }

    /// Runs a package. Its outputs are written into the arrays of its last outputs.
    public func run(
      _ package: Manifest.Package, context: Int, giving values: [String: Tensor]
    ) async throws {
      try await turns.run { try await self.runNow(package, context, values) }
    }

    /// A value of a context in single precision.
    public func value(_ name: String, context: Int) throws -> Tensor {
      guard let array = contexts[context]?[name] else {
        throw MatryoshkaError.packageFailed(package: name, reason: "was not computed")
      }
      return try NDArrays.tensor(array, named: name)
    }

    /// Releases all packages and values, after the calls that came before.
    public func release() async {
      await turns.runEvenIfCancelled { await self.forgetAll() }
    }

    /// Makes one prediction of the golden record. If it is not close enough to the recorded one, the
    /// packages are loaded for the GPU and then for the CPU alone, and the runtime keeps the first units
    /// that pass: a compute unit can be wrong without a word.
    ///
    /// Call it once per device and build of the system, before the first picture. It releases everything.
    /// Throws ``MatryoshkaError/selfTestFailed(reason:)`` if nothing passes.
    public func selfTest() async throws -> SelfTest {
      let probe = try GoldenProbe(of: bundle)
      let (first, floor) = (units, GoldenProbe.floor(of: bundle.manifest))
      var attempts: [SelfTest.Attempt] = []
      for choice in SelfTest.order(from: first, bundle.manifest) {
        units = choice
        let attempt: SelfTest.Attempt
        do {
          attempt = try await self.attempt(probe)
        } catch {
          units = first
          throw error
        }
        attempts.append(attempt)
        if attempt.psnr >= floor { return SelfTest(attempts: attempts, floor: floor) }
      }
      units = first
      let words = attempts.map(\.words).joined(separator: ", ")
      throw MatryoshkaError.selfTestFailed(reason: "\(words), expected \(floor) dB of the golden record")
    }

    private func attempt(_ probe: GoldenProbe) async throws -> SelfTest.Attempt {
      await release()
      let attempt: SelfTest.Attempt
      do {
        let psnr = try await probe.closeness(of: self, in: bundle)
        attempt = SelfTest.Attempt(units: units, psnr: psnr, failure: nil)
      } catch MatryoshkaError.packageFailed(let package, let reason) {
        attempt = SelfTest.Attempt(
          units: units, psnr: -.infinity, failure: "package \(package): \(reason)")
      } catch {
        await release()
        throw error
      }
      await release()
      return attempt
    }

    private func forget(_ package: Manifest.Package) { loaded[package.name] = nil }

    private func forgetAll() { (loaded, contexts) = ([:], [:]) }

    private func open(_ package: Manifest.Package) async throws {
      if loaded[package.name] != nil { return }
      let name = bundle.manifest.function(of: package) ?? "main"
      loaded[package.name] = try await fittingUnits(package) { model in
        try LoadedFunction(package, named: name, of: model)
      }
    }

    private func specialize(_ package: Manifest.Package) async throws {
      try await fittingUnits(package) { _ in }
    }

    /// What `use` makes of a package, for the first of its units that takes it.
    private func fittingUnits<Result>(
      _ package: Manifest.Package, _ use: (AIModel) throws -> Result
    ) async throws -> Result {
      let choices = (units ?? package.compute).specializations
      var failures: [String] = []
      for options in choices {
        do {
          let made = try use(await model(at: place.appending(path: package.path), options))
          if let failure = failures.first {
            remark("\(package.name) runs where Core AI chooses, since its unit refused it (\(failure)).")
          }
          return made
        } catch let error as MatryoshkaError {
          throw error  // of the package, whatever the units
        } catch {
          // A load that was cancelled says nothing about the unit.
          if error is CancellationError { throw error }
          try Task.checkCancellation()
          failures.append(error.cause)
        }
      }
      throw MatryoshkaError.packageFailed(
        package: package.name, reason: "cannot be loaded (\(failures.joined(separator: "; then ")))")
    }

    private func remark(_ sentence: String) {
      if !remarks.contains(sentence) { remarks.append(sentence) }
    }

    /// The specialized package: from the cache, or made now. Both are asked with one value of options, or
    /// else every launch would specialize again.
    private func model(at url: URL, _ options: SpecializationOptions) async throws -> AIModel {
      // What cannot be read from the cache is made anew.
      if let known = try? cache.model(for: url, options: options) { return known }
      return try await AIModel.specialize(contentsOf: url, options: options, cache: cache)
    }

    private func runNow(
      _ package: Manifest.Package, _ context: Int, _ values: [String: Tensor]
    ) async throws {
      guard let function = loaded[package.name] else {
        throw MatryoshkaError.packageFailed(package: package.name, reason: "is not loaded")
      }
      for input in package.inputs {
        if let tensor = values[input.name] { try give(tensor, input, of: package, function, context) }
      }
      var inputs: [String: NDArray] = [:]
      for input in package.inputs {
        guard let array = contexts[context]?[input.name] else {
          throw MatryoshkaError.packageFailed(package: package.name, reason: "needs \(input.name), which has no value yet")
        }
        inputs[input.name] = array
      }
      // Taken out, so that they are in no other hands while they are written.
      var used: [String: NDArray] = [:]
      for output in package.outputs where inputs[output.name] == nil {
        used[output.name] = take(output, context)
      }
      let made: [String: NDArray]
      do {
        made = try await function.run(inputs, reusing: consume used)
      } catch let error as CancellationError {
        throw error
      } catch {
        throw MatryoshkaError.packageFailed(package: package.name, reason: error.cause)
      }
      for output in package.outputs {
        guard let array = made[output.name], NDArrays.fits(array, output) else {
          throw MatryoshkaError.packageFailed(
            package: package.name, reason: "did not put out \(output.name) as declared in the manifest")
        }
        contexts[context, default: [:]][output.name] = array
      }
    }

    /// Takes a feature out of a context; nil if there is none, or one of another shape.
    private func take(_ feature: Manifest.Feature, _ context: Int) -> NDArray? {
      guard let array = contexts[context]?.removeValue(forKey: feature.name),
        NDArrays.fits(array, feature)
      else { return nil }
      return array
    }

    /// Puts a tensor of the host into a context, in the array that it had there before, if it fits.
    private func give(
      _ tensor: Tensor, _ input: Manifest.Feature, of package: Manifest.Package,
      _ function: LoadedFunction, _ context: Int
    ) throws {
      guard tensor.shape == input.shape else {
        throw MatryoshkaError.packageFailed(
          package: package.name,
          reason: "needs \(input.name) in the shape \(input.shape), but was given the shape \(tensor.shape)")
      }
      guard var array = take(input, context) ?? function.array(for: input) else { return }
      NDArrays.store(tensor, as: input, in: &array)
      contexts[context, default: [:]][input.name] = array
    }
  }

  extension URL {
    /// The same place without links. `resolvingSymlinksInPath` is no help: on Apple's systems it takes
    /// `/private` away and so makes a path that leads through a link.
    fileprivate func withoutLinks() throws -> URL {
      guard let found = realpath(path(percentEncoded: false), nil) else {
        throw MatryoshkaError.fileSystem(path: path, reason: "cannot be found")
      }
      defer { free(found) }
      return URL(filePath: String(cString: found), directoryHint: .isDirectory)
    }
  }
#endif
