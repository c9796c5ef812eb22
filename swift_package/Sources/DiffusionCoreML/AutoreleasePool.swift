#if canImport(CoreML) || COREML_SHIM
  #if canImport(ObjectiveC)
    import ObjectiveC
  #endif

  /// Runs `body` in an autorelease pool of its own, where there are such pools.
  ///
  /// `MLModel.prediction(from:options:)` returns objects of Objective-C. Without a pool around the call,
  /// they live until the thread's own pool is drained, which a loop of predictions never reaches.
  func pooled<Result>(_ body: () throws -> Result) rethrows -> Result {
    #if canImport(ObjectiveC)
      try autoreleasepool(invoking: body)
    #else
      try body()
    #endif
  }
#endif
